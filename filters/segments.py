"""Grounded segmentation of finished trajectories: what was achieved, and which steps achieved it.

Nothing is guessed from the start of an episode. A segment ends where the finished trajectory shows that something
was gained (progress rose, a document was opened), and is named after the action that gained it. As long as the
things that this action names had not been seen yet, the agent was exploring, and that part is a segment of its own.
"""

from __future__ import annotations

import re

from flywheel.trajectory import Segment, Trajectory

SOURCE = "milestones/1"
EXPLORE = "explore"
_WORDS = re.compile(r"[a-z]+")
_CONNECTIVES = frozenset({"in", "on", "to", "with", "from", "the", "a"})


def segment(trajectory: Trajectory) -> list[Segment]:
    """Contiguous segments in order that cover every step; only the last can be unfinished.

    Hindsight labels (Sub-goal Distillation, arXiv 2405.02749, section 3; Plan-and-Act, arXiv 2503.09572): the name
    comes from the finished run, so it is right by construction.
    """
    segments: list[Segment] = []
    gains = _gains(trajectory)
    first_seen = _first_seen(trajectory)

    def add(start: int, end: int, subgoal: str, completed: bool) -> None:
        if start < end:
            reward = sum(step.reward for step in trajectory.steps[start:end])
            segments.append(
                Segment(trajectory.trajectory_id, len(segments), start, end, subgoal, completed, reward, SOURCE)
            )

    start = 0
    for gain in gains:
        action = trajectory.steps[gain].action
        nameable = max((first_seen.get(word, start) for word in _objects(action)), default=start)
        split = start if nameable > gain else max(nameable, start)
        add(start, split, EXPLORE, True)
        add(split, gain + 1, action, True)
        start = gain + 1
    add(start, len(trajectory.steps), EXPLORE, False)
    return segments


def _gains(trajectory: Trajectory) -> list[int]:
    """Indices of the steps whose action raised the best progress so far or opened a document for the first time."""
    gains, best, read = [], 0.0, set()
    notes = [step.note for step in trajectory.steps[1:]] + [""]
    for step, note in zip(trajectory.steps, notes, strict=True):
        if step.progress > best or (note and note not in read):
            gains.append(step.index)
        best = max(best, step.progress)
        read.add(note)
    return gains


def _first_seen(trajectory: Trajectory) -> dict[str, int]:
    """Word → the first step whose observation showed it."""
    seen: dict[str, int] = {}
    for step in trajectory.steps:
        for word in _WORDS.findall(step.observation.lower()):
            seen.setdefault(word, step.index)
    return seen


def _objects(action: str) -> list[str]:
    return [word for word in _WORDS.findall(action.lower())[1:] if word not in _CONNECTIVES]
