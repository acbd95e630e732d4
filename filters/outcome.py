"""Outcome: the environment's own claim, and whether the record of the episode agrees with itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel.filters.verifier import arguments, verdict
from flywheel.trajectory import Item, StopReason, Trajectory, Verdict


class Outcome:
    """Completion: 100 for a claimed success, else 100 × score. Integrity: the share of consistency checks that hold."""

    name = "outcome"
    version = "1"

    def __init__(self) -> None:
        self.arguments = arguments()

    def verify(self, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        return [self._verify(trajectory) for trajectory in trajectories]

    def _verify(self, trajectory: Trajectory) -> Verdict:
        checks = _consistency(trajectory)
        return verdict(
            self,
            trajectory,
            completion=100.0 if trajectory.success else min(100.0 * trajectory.score, 99.0),
            integrity=sum(item.fraction for item in checks) / len(checks),
            completion_threshold=100.0,
            integrity_threshold=1.0,
            items=checks,
        )


def _consistency(trajectory: Trajectory) -> list[Item]:
    steps = trajectory.steps
    ended = bool(steps) and steps[-1].terminated
    reward = sum(step.reward for step in steps)
    return [
        _check("steps are numbered without gaps", [step.index for step in steps] == list(range(trajectory.length))),
        _check("nothing follows the end", not any(step.terminated or step.truncated for step in steps[:-1])),
        _check("success means that the task terminated", not trajectory.success or ended),
        _check("success and stop reason agree", trajectory.success == (trajectory.stop_reason is StopReason.SUCCESS)),
        _check(
            f"rewards sum to the total ({reward:.4f})",
            math.isclose(reward, trajectory.total_reward, rel_tol=1e-9, abs_tol=1e-9),
        ),
    ]


def _check(name: str, holds: bool) -> Item:
    return Item(name, 0.0, float(holds), "holds" if holds else "does not hold")
