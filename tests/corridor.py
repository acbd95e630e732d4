"""A world in a few lines: walk right to the door. Some seeds hang, crash or babble, each once: a file says that it did.

Seeds: 1xx hang at their second step, 2xx crash the process, 3xx answer nonsense, 4xx print to stdout, 5xx break and say
so. The files lie in the folder that FAULTS names; without it nothing goes wrong. Seeds of 6xx always divide by zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flywheel.environments.privileged import Facts, Milestone, canary
from flywheel.environments.protocol import Observation, Transition
from flywheel.errors import InfrastructureError
from flywheel.trajectory import Split, Task

NAME = "tests.corridor"
LENGTH = 6


def task_of(seed: int, split: Split = Split.TRAIN) -> Task:
    return Task(NAME, "{}", split, seed, "Walk to the door.")


class Corridor:
    def reset(self, task: Task) -> Observation:
        self._seed, self._at, self._steps = task.seed, 0, 0
        return self._seen("")

    def step(self, action: str) -> Transition:
        self._steps += 1
        if self._seed // 100 == 6:
            self._steps //= 0
        if self._steps == 2:
            self._go_wrong()
        self._at = max(0, self._at + {"right": 1, "left": -1}.get(action, 0))
        solved = self._at == LENGTH
        progress = self._at / LENGTH
        reward = float("nan") if self._steps == 2 and self._wrong(3) else float(solved)
        return Transition(self._seen(f"You go {action}."), reward, progress, terminated=solved, success=solved)

    def _seen(self, event: str) -> Observation:
        return Observation(
            f"You are at {self._at} of {LENGTH}.", event, state_key=str(self._at), valid_actions=("left", "right")
        )

    def _wrong(self, kind: int) -> bool:
        """Is this a seed of that kind, for the first time?"""
        folder = os.environ.get("FAULTS")
        if not folder or self._seed // 100 != kind:
            return False
        mark = Path(folder) / str(self._seed)
        if mark.exists():
            return False
        mark.touch()
        return True

    def _go_wrong(self) -> None:
        if self._wrong(1):
            time.sleep(3600)
        if self._wrong(2):
            os._exit(3)
        if self._wrong(4):
            print("what an environment prints", flush=True)
        if self._wrong(5):
            raise InfrastructureError("the corridor collapsed")


class CorridorWorld:
    def __init__(self) -> None:
        self._games: list[Corridor] = []

    def environments(self, count: int) -> Sequence[Corridor]:
        self._games += [Corridor() for _ in range(count - len(self._games))]
        return self._games[:count]

    def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        return tuple(task_of(seed, split) for seed in range(start, start + count))

    def find(self, split: Split, seed: int) -> Task:
        return task_of(seed, split)

    def undo(self, action: str) -> str | None:
        return {"left": "right", "right": "left"}.get(action)

    def facts(self, task: Task) -> Facts:
        return Facts(("right",) * LENGTH, (Milestone("right", "right", 100.0),), canary(task))


@contextmanager
def open_world(parameters: str) -> Iterator[CorridorWorld]:
    yield CorridorWorld()
