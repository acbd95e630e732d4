"""Replay: the recorded actions, played again in a fresh environment, must lead through the recorded states."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel.environments.protocol import Observation, World
from flywheel.filters.milestones import task_of
from flywheel.filters.verifier import arguments, verdict
from flywheel.trajectory import Item, Step, Trajectory, Verdict


class Replay:
    """Integrity: 1 if every observation, reward and end is reproduced, else the share of steps before the first
    difference. Completion: 100 × the progress that the replay reached."""

    name = "replay"
    version = "1"

    def __init__(self, world: World) -> None:
        self.arguments = arguments()
        self._world = world

    def verify(self, trajectories: Sequence[Trajectory]) -> list[Verdict]:
        return [self._verify(trajectory) for trajectory in trajectories]

    def _verify(self, trajectory: Trajectory) -> Verdict:
        progress, success, difference = self._play(trajectory)
        matched = trajectory.length if difference is None else difference[0]
        evidence = "reproduced" if difference is None else f"step {difference[0]}: {difference[1]}"
        return verdict(
            self,
            trajectory,
            completion=100.0 if success else 99.0 * progress,
            integrity=1.0 if difference is None else 0.99 * matched / max(trajectory.length, 1),
            completion_threshold=100.0,
            integrity_threshold=1.0,
            items=[Item("replay reproduces the record", 0.0, float(difference is None), evidence)],
        )

    def _play(self, trajectory: Trajectory) -> tuple[float, bool, tuple[int, str] | None]:
        """(progress reached, success, first difference as (step, what differs) or None)."""
        environment = self._world.environments(1)[0]
        observation = environment.reset(task_of(trajectory))
        progress, success = 0.0, False
        for step in trajectory.steps:
            if found := _differs(step, observation):
                return progress, success, (step.index, found)
            transition = environment.step(step.action)
            observation, progress, success = transition.observation, transition.progress, transition.success
            if not math.isclose(transition.reward, step.reward, abs_tol=1e-9):
                return progress, success, (step.index, f"reward {step.reward} on record, {transition.reward} on replay")
            if transition.terminated != step.terminated:
                return progress, success, (step.index, f"terminated is {step.terminated} on record")
        if observation.text != trajectory.final_observation or observation.event != trajectory.final_event:
            return progress, success, (trajectory.length, "the final observation differs")
        if success != trajectory.success:
            return progress, success, (trajectory.length, f"success is {trajectory.success} on record")
        return progress, success, None


def _differs(step: Step, observation: Observation) -> str | None:
    if step.observation != observation.text:
        return "the observation differs"
    if step.event != observation.event or step.note != observation.note:
        return "the environment's answer differs"
    if step.valid_actions != observation.valid_actions:
        return "the valid actions differ"
    return None
