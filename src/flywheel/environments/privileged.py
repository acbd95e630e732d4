"""Facts that the builder of an environment knows and that no agent may ever see.

Only teachers (`agents.scripted`) and verifiers (`filters`) import this module or call `World.facts`; a test holds
that neither prompts nor training rows can reach it.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.trajectory import Task, digest


@dataclass(frozen=True, slots=True)
class Milestone:
    """One thing that every full solution does, with the points it is worth; points of a task sum to 100."""

    name: str
    action: str
    points: float


@dataclass(frozen=True, slots=True)
class Facts:
    """A solution and its milestones, earliest first, verified by playing them."""

    gold_actions: tuple[str, ...]
    milestones: tuple[Milestone, ...]
    canary: str
    """Stands in these facts and nowhere else: where it turns up, facts have leaked."""


CANARY = "privileged-canary-"


def canary(task: Task) -> str:
    """The mark of a task's facts."""
    return f"{CANARY}{digest('canary', task.task_id)}"
