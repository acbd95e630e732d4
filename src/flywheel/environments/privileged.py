"""Facts that the builder of an environment knows and that no agent may ever see.

Only teachers (`agents.scripted`) and verifiers (`filters`) import this module or call `World.facts`; a test holds
that neither prompts nor training rows can reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flywheel.trajectory import Task, Trajectory, digest


@dataclass(frozen=True, slots=True)
class Milestone:
    """One thing that every full solution does, with the points it is worth; points of a task sum to 100.

    It is reached where `reached` says so, in a state, at a mark of progress, or, without any of these, by a rewarded
    action: the first of them that is given counts.
    """

    name: str
    action: str
    points: float
    progress: float | None = None
    """The progress from which it is reached."""
    state_key: str = ""
    """The state in which it is reached."""
    reached: Callable[[Trajectory], int | None] | None = None
    """The step that reached it, by a function of yours; None where none did."""


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
