"""Replay: the recorded actions, played again in a fresh environment, must lead through the recorded states."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np

from flywheel.datasets.lake.redaction import MARK, redact
from flywheel.datasets.lake.secret_rules import OPTIONAL
from flywheel.environments.capabilities import FindsTasks
from flywheel.environments.protocol import Observation, World
from flywheel.filters.batch import TrajectoryBatch
from flywheel.filters.verifiers.protocol import arguments, verdicts
from flywheel.trajectory import OURS, Item, Step, Task, Trajectory, Verdict

ITEM = "replay reproduces the record"
REDACTION_OPTIONS = tuple(
    chosen for count in range(len(OPTIONAL) + 1) for chosen in combinations([rule.kind for rule in OPTIONAL], count)
)
"""Every choice of the optional kinds of personal data."""
Difference = tuple[int, str]
"""(step, what differs there)."""


class Replay:
    """Integrity: 1 if the task is the world's and every observation, state, reward and end is reproduced, else the
    share of steps before the first difference. Completion: 100 × the progress that the replay reached.

    Where a second replay differs from the first, the environment is not deterministic and nothing is shown: such an
    episode, like one with redacted actions, keeps its integrity, has completion and confidence 0 and does not pass.
    """

    name = "replay"
    version = "3"

    def __init__(self, world: World) -> None:
        self.arguments = arguments()
        self._world = world

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        played = [self._judge(trajectory, task) for trajectory, task in zip(batch.objects, batch.tasks, strict=True)]
        completion, integrity, confidence = np.array([row[:3] for row in played], np.float64).reshape(-1, 3).T
        return verdicts(
            self,
            batch,
            completion=completion,
            completion_threshold=100.0,
            integrity=integrity,
            items=[[Item(ITEM, 0.0, float(row[3] == ""), row[3] or "reproduced")] for row in played],
            confidence=confidence,
        )

    def _judge(self, trajectory: Trajectory, task: Task) -> tuple[float, float, float, str]:
        """(completion, integrity, confidence, what differs)."""
        if MARK in task.data or any(MARK in step.action for step in trajectory.steps):
            return 0.0, 1.0, 0.0, "the task or its actions were redacted, so nothing can be replayed"
        if trajectory.origin not in OURS and (task.name or not isinstance(self._world, FindsTasks)):
            return 0.0, 1.0, 0.0, "the environment cannot tell which task this is (find), only the record does"
        played = self._play(trajectory, task)
        _, progress, success, difference = played
        if difference is None:
            return (100.0 if success else 99.0 * progress), 1.0, 1.0, ""
        step, what = difference
        if self._play(trajectory, task) != played:
            return 0.0, 1.0, 0.0, f"the environment is not deterministic: step {step}: {what}"
        return 99.0 * progress, 0.99 * step / max(trajectory.length, 1), 1.0, f"step {step}: {what}"

    def _play(self, trajectory: Trajectory, task: Task) -> tuple[Observation, float, bool, Difference | None]:
        """(what was seen last, progress reached, success, first difference or None)."""
        instruction = task.instruction
        if isinstance(self._world, FindsTasks) and not task.name:
            instruction = self._world.find(task.split, task.seed).instruction
        environment = self._world.environments(1)[0]
        observation = environment.reset(task)
        progress, success = 0.0, False
        if not _same(trajectory.instruction, instruction):
            return observation, progress, success, (0, "the instruction is not the task's")
        for place, step in enumerate(trajectory.steps):
            if difference := _differs(step, observation):
                return observation, progress, success, (place, difference)
            transition = environment.step(step.action)
            observation, progress, success = transition.observation, transition.progress, transition.success
            if not _close(step.reward, transition.reward):
                return (
                    observation,
                    progress,
                    success,
                    (place, f"reward {step.reward} on record, {transition.reward} on replay"),
                )
            if not _close(step.progress, progress):
                return (
                    observation,
                    progress,
                    success,
                    (place, f"progress {step.progress} on record, {progress} on replay"),
                )
            if transition.terminated != step.terminated:
                return observation, progress, success, (place, f"terminated is {step.terminated} on record")
        last = (trajectory.final_observation, trajectory.final_feedback, trajectory.final_state_key)
        if not all(map(_same, last, (observation.text, observation.feedback, observation.state_key))):
            return observation, progress, success, (trajectory.length, "the final observation differs")
        if success != trajectory.success:
            return observation, progress, success, (trajectory.length, f"success is {trajectory.success} on record")
        return observation, progress, success, None


def _differs(step: Step, seen: Observation) -> str | None:
    if not _same(step.observation, seen.text):
        return "the observation differs"
    if not (_same(step.feedback, seen.feedback) and _same(step.document, seen.document)):
        return "the environment's answer differs"
    if not (_same(step.location, seen.location) and _same(step.state_key, seen.state_key)):
        return "the state differs"
    if bool(step.whole_view) != seen.whole:
        return "the kind of view differs"
    if (step.valid_actions is None) != (seen.valid_actions is None):
        return "the valid actions differ"
    recorded, offered = step.valid_actions or (), seen.valid_actions or ()
    if recorded == offered or (len(recorded) == len(offered) and all(map(_same, recorded, offered))):
        return None
    return "the valid actions differ"


def _close(recorded: float | None, replayed: float) -> bool:
    """Equal, and told: a record that leaves out what its world tells is not what was played."""
    return recorded is not None and math.isclose(replayed, recorded, abs_tol=1e-9)


def _same(recorded: str, seen: str) -> bool:
    """Equal, but for what the lake does not keep, under whichever options it was written."""
    return recorded == seen or (
        MARK in recorded and any(recorded == redact(seen, Counter(), also) for also in REDACTION_OPTIONS)
    )
