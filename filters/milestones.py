"""Milestones: a checklist of privileged facts, with partial credit and the step that proves each item.

Facts come from a solution that was played and scored beforehand (Gym-Anything, arXiv 2604.06126, privileged
verification); the agent never sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.environments.protocol import World
from flywheel.filters.verifier import arguments, verdict
from flywheel.trajectory import Item, Task, Trajectory, Verdict


class Milestones:
    """Completion: points of the milestones that the episode reached, each by its action at a step that was rewarded."""

    name = "milestones"
    version = "1"

    def __init__(self, world: World, *, completion_threshold: float = 99.9) -> None:
        self.arguments = arguments(completion_threshold=completion_threshold)
        self._world = world
        self._threshold = completion_threshold

    def verify(self, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        return [self._verify(trajectory) for trajectory in trajectories]

    def _verify(self, trajectory: Trajectory) -> Verdict:
        rewarded: dict[str, int] = {}
        for step in trajectory.steps:
            if step.reward > 0:
                rewarded.setdefault(step.action, step.index)
        items = [
            Item(
                milestone.name,
                milestone.points,
                float(milestone.action in rewarded),
                f"step {rewarded[milestone.action]}" if milestone.action in rewarded else "never rewarded",
            )
            for milestone in self._world.facts(task_of(trajectory)).milestones
        ]
        return verdict(
            self,
            trajectory,
            completion=sum(item.points * item.fraction for item in items),
            integrity=1.0,
            completion_threshold=self._threshold,
            integrity_threshold=0.0,
            items=items,
        )


def task_of(trajectory: Trajectory) -> Task:
    """The task that the trajectory says it played."""
    return Task(
        trajectory.environment, trajectory.parameters, trajectory.split, trajectory.seed, trajectory.instruction
    )
