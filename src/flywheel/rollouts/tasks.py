"""Which tasks are played: those of a list, or those that the environment makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flywheel.config.root import Config
from flywheel.environments.capabilities import ListsTasks, MakesTasks
from flywheel.environments.catalog import canonical
from flywheel.environments.protocol import World
from flywheel.environments.task_lists import read_tasks
from flywheel.errors import ConfigError
from flywheel.rollouts.episode import Job
from flywheel.trajectory import Split, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskSource:
    """The tasks of a flywheel, numbered within each split. `again`: a list is played again where it is exhausted."""

    world: World
    listed: Mapping[Split, Sequence[Task]] | None
    again: bool

    def draw(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        """Tasks [start, start + count) of a split; of a list, those of them that there are.

        Raises `ConfigError` where there is none at all, or where the environment makes none.
        """
        if self.listed is not None:
            drawn = tuple(self.listed[split][start : start + count])
            if not drawn and count:
                raise ConfigError(
                    f"the list has {len(self.listed[split])} {split} tasks, and those from {start} on were asked for"
                )
            return drawn
        if not isinstance(self.world, MakesTasks):
            raise ConfigError('this environment makes no tasks of its own; list some: [tasks] source = "tasks.jsonl"')
        return tuple(self.world.tasks(split, start, count))

    def training_jobs(self, start: int, count: int) -> list[Job]:
        """Training episodes [start, start + count). A list that is shorter gives fewer, or further attempts."""
        if self.listed is None:
            return [Job(task) for task in self.draw(Split.TRAIN, start, count)]
        tasks = self.listed[Split.TRAIN]
        end = start + count if self.again else min(start + count, len(tasks))
        if not tasks or end <= start < start + count:
            raise ConfigError(f"the list's {len(tasks)} training tasks are played; add some, or set tasks.again = true")
        if end < start + count:
            log.warning("the list has %d training tasks: %d of %d episodes are played", len(tasks), end - start, count)
        return [Job(tasks[place % len(tasks)], place // len(tasks)) for place in range(start, end)]

    def practice(self, start: int, count: int) -> tuple[Task, ...]:
        """Training tasks for a student's own play. Of a list, as many as there are, from its end."""
        if self.listed is None:
            return self.draw(Split.TRAIN, start, count)
        tasks = self.listed[Split.TRAIN]
        if len(tasks) < count:
            log.warning("the list has %d training tasks of the %d that a student is to play", len(tasks), count)
        return tuple(tasks[-count:])

    def held_out(self, split: Split, start: int, count: int, end: int | None = None) -> tuple[Task, ...]:
        """Tasks from `start` on. A list is gone through again and again, up to `end`; no task is drawn twice."""
        if self.listed is None:
            return self.draw(split, start, count)
        tasks = self.listed[split][:end]
        if not tasks:
            raise ConfigError(f"the list has no {split} tasks; say split in some rows, or raise tasks.{split}")
        if len(tasks) < count:
            log.warning("the list has %d %s tasks of the %d that are asked for", len(tasks), split, count)
        return tuple(tasks[(start + place) % len(tasks)] for place in range(min(count, len(tasks))))


def task_source(config: Config, world: World) -> TaskSource:
    """The tasks that a config names. Raises `ConfigError` for a list that cannot be read."""
    settings = config.tasks
    listed: Mapping[Split, Sequence[Task]] | None = None
    if settings.source:
        shares = {Split.DEV: settings.dev, Split.TEST: settings.test}
        name, parameters = config.environment.name, canonical(config.environment.parameters)
        listed = read_tasks(settings.source, name, parameters, settings.columns, shares)
    elif isinstance(world, ListsTasks):
        listed = world.listed()
    return TaskSource(world, listed, settings.again)
