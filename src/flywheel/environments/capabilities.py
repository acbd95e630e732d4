"""What a world can do beyond playing: found by what it offers, and refused by name where something needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flywheel.environments.privileged import Facts
from flywheel.environments.protocol import Environment, Observation, World
from flywheel.errors import ConfigError
from flywheel.trajectory import Split, Task


@dataclass(frozen=True, slots=True)
class Advice:
    """What a live expert would do, and what for, where it can name that."""

    action: str
    subgoal: str = ""


@runtime_checkable
class MakesTasks(World, Protocol):
    """Makes tasks of its own. Without it, tasks come from a list."""

    def tasks(self, split: Split, start: int, count: int) -> Sequence[Task]:
        """Tasks [start, start + count) of a split. Raises `ConfigError` where there are not so many."""
        ...


@runtime_checkable
class ListsTasks(World, Protocol):
    """Brings a list of tasks, and no more than these."""

    def listed(self) -> Mapping[Split, Sequence[Task]]: ...


@runtime_checkable
class KnowsSolutions(Protocol):
    """Has an expert. `facts` is the privileged door: only teachers and verifiers may open it."""

    def facts(self, task: Task) -> Facts: ...


@runtime_checkable
class AdvisesLive(Environment, Protocol):
    """An environment with an expert that can be asked from any state. Privileged: teachers alone hear of it."""

    def advise(self) -> Advice | None:
        """What the expert would do now; None where it knows nothing. Raises `InfrastructureError` where it breaks."""
        ...


@runtime_checkable
class FindsTasks(Protocol):
    """Can make a task again from its split and seed, so that a record's own word for it need not be believed."""

    def find(self, split: Split, seed: int) -> Task:
        """The task, with its instruction. Raises `TaskError` if there is none."""
        ...


@runtime_checkable
class TakesBack(Protocol):
    """Knows which action takes another one back."""

    def undo(self, action: str) -> str | None:
        """The action that most likely takes `action` back, for teachers; None where there is none."""
        ...


def solver(world: World | None, who: str, instead: str = "") -> KnowsSolutions:
    """The world, if it knows solutions. Raises `ConfigError` that says who needs them, and what to do instead."""
    if isinstance(world, KnowsSolutions):
        return world
    problem = f"{who} needs solutions, and this environment has no facts(task) that tells them"
    raise ConfigError(f"{problem}; {instead}" if instead else problem)


def advises(world: World) -> bool:
    """Can an expert be asked from any state of this world?"""
    return isinstance(world.environments(1)[0], AdvisesLive)


def undo_of(world: World, action: str) -> str | None:
    """The action that takes another one back, where the world knows one."""
    return world.undo(action) if isinstance(world, TakesBack) else None


def describe_capabilities(world: World, seen: Observation) -> list[tuple[str, bool, str]]:
    """(capability, has it, what it makes possible) of a world, and of what its first task showed."""
    return [
        (
            "tasks of its own: tasks(split, start, count), or listed()",
            isinstance(world, (MakesTasks, ListsTasks)),
            "play without a list of tasks",
        ),
        (
            "solutions: facts(task)",
            isinstance(world, KnowsSolutions),
            "the teachers expert and noisy_expert; the verifiers privileged and judge; curriculum, calibration",
        ),
        (
            "live expert: Environment.advise()",
            advises(world),
            "the teachers expert and noisy_expert from any state, also in tutored play",
        ),
        ("finds tasks: find(split, seed)", isinstance(world, FindsTasks), "replay of imported records"),
        ("takes back: undo(action)", isinstance(world, TakesBack), "experts that recover; loops of noisy experts"),
        ("lists valid actions", seen.valid_actions is not None, "random play; students choose instead of writing"),
        ("state keys", bool(seen.state_key), "action mask, stuck subgoals, loops, group-in-group credit"),
    ]
