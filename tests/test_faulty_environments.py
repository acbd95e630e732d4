"""What an environment answers that it must not: its own fault each, told in one line, and no other episode breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flywheel.agents.scripted import Idle
from flywheel.environments.protocol import Observation, Transition
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Split, StopReason, Task

FINE = Transition(Observation("A room."), 0.0, 0.0, terminated=False, success=False)
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "None in place of Transition"),
    "a tuple of another library": (lambda: ("A room.", 0.0, False, {}), r"\('A room.', 0.0, False, {}\) in place of"),
    "no number": (lambda: replace(FINE, reward=float("nan")), "reward nan, progress 0.0"),
    "no reward": (lambda: replace(FINE, reward=None), "reward None"),
    "too much progress": (lambda: replace(FINE, progress=1.5), "progress 1.5"),
    "no text": (lambda: replace(FINE, observation=Observation(None)), "None in place of text"),  # type: ignore[arg-type]
    "an action that is no text": (
        lambda: replace(FINE, observation=Observation("A room.", valid_actions=("go", 3))),  # type: ignore[arg-type]
        "3 in place of text",
    ),
    "an error": (lambda: [][1], "the environment raised IndexError: list index out of range"),
}


class Faulty:
    """Answers wrongly at the second step of odd tasks."""

    def __init__(self, fault: Callable[[], Any]) -> None:
        self._fault = fault

    def environments(self, count: int) -> list[Any]:
        return [Faulty(self._fault) for _ in range(count)]

    def reset(self, task: Task) -> Observation:
        self._seed, self._steps = task.seed, 0
        return FINE.observation

    def step(self, action: str) -> Any:
        self._steps += 1
        return self._fault() if self._seed % 2 and self._steps == 2 else FINE


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_at_fault_breaks_its_own_episode(fault: str) -> None:
    answer, says = FAULTS[fault]
    jobs = [Job(Task("faulty", "{}", Split.TRAIN, seed)) for seed in range(6)]
    played = list(
        Rollout(Idle(), jobs, in_process(Faulty(answer), 3), budget=Budget(4), origin=Origin(1, "collect", "c"))
    )
    ends = {trajectory.seed: trajectory for trajectory in played}
    assert {seed for seed, one in ends.items() if one.stop_reason is StopReason.INFRASTRUCTURE} == {1, 3, 5}
    assert all(trajectory.length == 4 for seed, trajectory in ends.items() if seed % 2 == 0)
    assert all(trajectory.length == 1 for seed, trajectory in ends.items() if seed % 2)
    for seed in (1, 3, 5):
        assert re.search(says, ends[seed].error), ends[seed].error
