"""Privileged: a checklist of hidden facts, with partial credit and the step that proves each item.

Facts come from a solution that was played and scored beforehand (Gym-Anything, arXiv 2604.06126, privileged
verification); the agent never sees them, and words that only they can have told deny its integrity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from flywheel.environments.capabilities import solver
from flywheel.environments.privileged import Facts, Milestone
from flywheel.environments.protocol import World
from flywheel.filters.batch import TrajectoryBatch
from flywheel.filters.verifiers.protocol import LEAVE_OUT, arguments, verdicts
from flywheel.trajectory import Item, Trajectory, Verdict

MOST_ITEMS = 8
PASTED = 2
"""So many milestones named before anything of them was in sight are no guess."""
RECITED = 0.8
"""Such a share of the solution in one breath is no plan of one's own."""
SHORTEST = 6
"""A solution of fewer actions may well be guessed."""
_WORDS = re.compile(r"[a-z]+")


class Privileged:
    """Completion: points of the checklist, each earned where its milestone was reached. Integrity: 0 where hidden facts
    leaked.

    `completion_threshold` in points of 100.
    """

    name = "privileged"
    version = "1"

    def __init__(self, world: World | None, *, completion_threshold: float = 99.9) -> None:
        self.arguments = arguments(completion_threshold=completion_threshold)
        self._solver = solver(world, "the verifier privileged", LEAVE_OUT) if world else None
        self._threshold = completion_threshold

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        assert self._solver is not None
        facts = [self._solver.facts(task) for task in batch.tasks]
        items = [_credit(trajectory, known) for trajectory, known in zip(batch.objects, facts, strict=True)]
        leaks = [pasted(trajectory, known) for trajectory, known in zip(batch.objects, facts, strict=True)]
        return verdicts(
            self,
            batch,
            completion=np.array([sum(item.points * item.fraction for item in row) for row in items], np.float64),
            completion_threshold=self._threshold,
            integrity=np.array([float(not leak) for leak in leaks]),
            items=[
                [*row, Item("agent tells no hidden facts", 0.0, float(not leak), leak or "holds")]
                for row, leak in zip(items, leaks, strict=True)
            ],
        )


def grouped(milestones: Sequence[Milestone]) -> list[tuple[Milestone, ...]]:
    """Milestones as at most eight items, earliest first, neighbours together."""
    count = min(MOST_ITEMS, len(milestones))
    return [
        tuple(milestones[place] for place in part) for part in np.array_split(np.arange(len(milestones)), count or 1)
    ]


def _credit(trajectory: Trajectory, facts: Facts) -> list[Item]:
    items = []
    for part in grouped(facts.milestones):
        points = sum(milestone.points for milestone in part)
        steps = [_step_of(milestone, trajectory) for milestone in part]
        earned = sum(milestone.points for milestone, step in zip(part, steps, strict=True) if step is not None)
        evidence = ", ".join(
            f"{milestone.name}: never reached" if step is None else f"{milestone.name}: step {step}"
            for milestone, step in zip(part, steps, strict=True)
        )
        items.append(
            Item(
                " and ".join(milestone.name for milestone in part), points, earned / points if points else 0.0, evidence
            )
        )
    return items


def _step_of(milestone: Milestone, trajectory: Trajectory) -> int | None:
    """The step that reached a milestone, or None."""
    if milestone.reached is not None:
        return milestone.reached(trajectory)
    if milestone.state_key:
        after = [*(step.state_key for step in trajectory.steps[1:]), trajectory.final_state_key]
        return next((place for place, key in enumerate(after[: trajectory.length]) if key == milestone.state_key), None)
    if milestone.progress is not None:
        mark = milestone.progress
        return next((step.index for step in trajectory.steps if (step.progress or 0.0) >= mark - 1e-9), None)
    rewarded = (step for step in trajectory.steps if (step.reward or 0.0) > 0)
    return next((step.index for step in rewarded if step.action == milestone.action), None)


def pasted(trajectory: Trajectory, facts: Facts) -> str:
    """Where the agent's text reveals what only the facts hold; empty if it does not.

    That is their mark; milestones whose things or verbs were not in sight yet; or most of the solution, word for word
    and in order, before half of it was played. Actions do not count: teachers act on what they know by design.
    """
    seen = set(_WORDS.findall(trajectory.instruction.lower()))
    for step in trajectory.steps:
        offered = " ".join(step.valid_actions or ())
        seen.update(_WORDS.findall(f"{step.observation} {step.feedback} {step.document} {offered}".lower()))
        words = f"{step.thought}\n{step.subgoal}".lower()
        if facts.canary in words:
            return f"step {step.index} holds the mark of the facts"
        if not words.strip():
            continue
        leaked = [
            milestone.name
            for milestone in facts.milestones
            if milestone.action and milestone.action in words and not seen.issuperset(_WORDS.findall(milestone.action))
        ]
        if len(leaked) >= PASTED:
            return f"step {step.index} names {' and '.join(leaked[:PASTED])} before they were in sight"
        if 2 * step.index < len(facts.gold_actions) and _recited(words, facts.gold_actions) >= RECITED:
            return f"step {step.index} recites the solution"
    return ""


def _recited(words: str, actions: Sequence[str]) -> float:
    """Share of the actions that stand in the words in their order."""
    place, matched = 0, 0
    for action in actions:
        where = words.find(action, place)
        if where >= 0:
            place, matched = where + len(action), matched + 1
    return matched / max(len(actions), SHORTEST)
