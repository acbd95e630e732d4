"""A learned auditor: a value head on the student that predicts whether the task is solved.

It looks through the student's own model at observations alone, without what was done, and a linear head says how likely
it is that this is the end. It learns from training tasks: where the student said that it was done, and earlier.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flywheel.agents.contexts.memory import Memory
from flywheel.agents.contexts.prompts import END, TASK, Piece, Window, open_window
from flywheel.agents.policy import Policy
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import observation_of
from flywheel.distill.credit.critics import ValueHead
from flywheel.environments.protocol import Observation, World
from flywheel.evaluation.best_of_n import StateEncoder, fitted, outcomes
from flywheel.rollouts.auditor import SHOWN, Record
from flywheel.rollouts.engine import Ruling
from flywheel.trajectory import Task, Trajectory, digest

EARLIER = 3
"""Moments before the end that each episode teaches as not done."""
DONE = 0.5


@dataclass(slots=True)
class ValueAuditor:
    """Believes what its head gives better odds than even. `notes`: how far it can be trusted."""

    encoder: StateEncoder
    head: ValueHead
    notes: dict[str, float]
    identity: str
    record: Record = field(default_factory=Record)

    async def audit(self, task: Task, seen: Sequence[Observation]) -> Ruling:
        window = [("now", _shown(task.instruction, seen))]
        _, features_MD, tokens = await asyncio.to_thread(self.encoder.features, window)
        chance = float(self.head(features_MD)[0])
        self.record.rulings += 1
        if chance > DONE:
            return Ruling("", tokens)
        self.record.refusals += 1
        return Ruling(f"The task does not look done (chance {max(0.0, min(1.0, chance)):.0%}).", tokens)

    async def close(self) -> None:
        """There is nothing to let go of."""


def value_auditor(
    config: Config, lake: Lake, world: World, folder: Path, student: Policy, progress: Callable[[int], None]
) -> ValueAuditor:
    """Fit a head on how a student's training episodes went."""
    encoder = StateEncoder.of(config, folder)
    moments = [moment for episode in outcomes(config, lake, world, student, progress) for moment in _moments(episode)]
    head, notes = fitted(encoder, moments)
    return ValueAuditor(encoder, head, notes, digest("value auditor", folder.name, SHOWN, EARLIER, notes))


def _moments(trajectory: Trajectory) -> list[tuple[str, Window, float]]:
    """(task group, what was seen by then, 1 if that solved the task): the end of an episode, and moments before it."""
    seen = [observation_of(step) for step in trajectory.steps]
    chance = random.Random(trajectory.trajectory_id)
    early = chance.sample(range(1, len(seen) - 1), min(EARLIER, len(seen) - 2)) if len(seen) > 2 else []
    ends = [(len(seen), float(bool(trajectory.success))), *((end, 0.0) for end in early)]
    return [(trajectory.task_group, _shown(trajectory.instruction, seen[:end]), won) for end, won in ends]


def _shown(instruction: str, seen: Sequence[Observation]) -> Window:
    """Documents, the newest events and the last view, with a mark where the ruling falls."""
    memory = Memory()
    for observation in seen:
        memory = memory.read(observation.document)
    first, *rest = seen[-SHOWN:]
    window = open_window(Piece(instruction, marker=TASK), memory, first)
    for observation in rest:
        window.feedback(observation)
    window.end_with(END, target=True, decision=0)
    return window
