"""Grounded segmentation of finished trajectories: what was achieved, and which steps achieved it.

Nothing is guessed from the start of an episode. A segment ends where the finished trajectory shows that something
was gained (progress rose, a document was opened), and is named after the action that gained it. As long as the
things that this action names had not been seen yet, the agent was exploring, and that part is a segment of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise

import numpy as np

from flywheel.filters.batch import Bools, TrajectoryBatch, batch_of, codes
from flywheel.text import subgoal_name
from flywheel.trajectory import Segment, Step, Trajectory

SOURCE, LIVED = "milestones/2", "lived/1"
EXPLORE = "explore"
_WORDS = re.compile(r"[a-z]+")
_CONNECTIVES = frozenset({"in", "on", "to", "with", "from", "the", "a"})


def segment(trajectory: Trajectory) -> list[Segment]:
    """The segments of one trajectory."""
    return segments_of(batch_of([trajectory]))[0]


def segments_of(batch: TrajectoryBatch) -> list[list[Segment]]:
    """For each trajectory, contiguous segments in order that cover every step; only the last can be unfinished.

    Hindsight labels (Sub-goal Distillation, arXiv 2405.02749, section 3; Plan-and-Act, arXiv 2503.09572): the name
    comes from the finished run, so it is right by construction.
    """
    gains = np.flatnonzero(_gains(batch))
    bounds = np.searchsorted(gains, batch.starts_N1)
    rewards = np.nan_to_num(batch.step_numbers("reward"), posinf=0.0, neginf=0.0)
    segments: list[list[Segment]] = [[] for _ in range(len(batch))]
    for row, trajectory_id in enumerate(batch.ids):
        start, end = batch.starts_N1[row], batch.starts_N1[row + 1]
        mine = (gains[bounds[row] : bounds[row + 1]] - start).tolist()
        actions = [batch.steps["action"][start + gain].as_py() for gain in mine]
        views = batch.steps["observation"].slice(start, end - start).to_pylist() if mine else []
        for number, (first, last, name, done) in enumerate(_parts(mine, actions, views, int(end - start))):
            reward = float(rewards[start + first : start + last].sum())
            segments[row].append(Segment(trajectory_id, number, first, last, name, done, reward, SOURCE))
    return segments


def by_plan(trajectory: Trajectory) -> list[Segment]:
    """The teacher's or planner's own subgoals, as they were in force; none for an episode without a plan.

    A subgoal counts as completed unless it is the last of an unsolved episode. A step that names none goes on with the
    one before; what comes before the first is exploring.
    """
    if not any(step.subgoal for step in trajectory.steps):
        return []
    subgoals: Iterator[str] = accumulate(
        (step.subgoal for step in trajectory.steps), lambda before, name: name or before
    )
    named = list(subgoals)
    changed = [
        step.index
        for step, (before, name) in zip(trajectory.steps[1:], pairwise(named), strict=True)
        if name != before or (step.new_subgoal and step.subgoal)
    ]
    starts = [0, *changed]
    return segments_at(trajectory, starts, [named[start] or EXPLORE for start in starts], LIVED)


def segments_at(trajectory: Trajectory, starts: Sequence[int], subgoals: Sequence[str], source: str) -> list[Segment]:
    """Segments that begin at the given steps and cover all of them; the last is completed unless the task is known to
    be unsolved. How a recorded session ended is often reported later, and only verified ones teach."""
    ends = [*starts[1:], len(trajectory.steps)]
    return [
        Segment(
            trajectory.trajectory_id,
            index,
            start,
            end,
            subgoal,
            end < len(trajectory.steps) or trajectory.success is not False,
            _earned(trajectory.steps[start:end]),
            source,
        )
        for index, (start, end, subgoal) in enumerate(zip(starts, ends, subgoals, strict=True))
    ]


def _earned(steps: Sequence[Step]) -> float:
    return float(sum(step.reward or 0.0 for step in steps))


def _parts(
    gains: Sequence[int], actions: Sequence[str], views: Sequence[str], length: int
) -> list[tuple[int, int, str, bool]]:
    """(start, end, subgoal, completed) of one trajectory, from its gains and the actions that gained.

    Where success alone is told, at the last step, nothing is known of what led to it: the last action is no subgoal.
    """
    if list(gains) == [length - 1]:
        return [(0, length, EXPLORE, True)]
    parts: list[tuple[int, int, str, bool]] = []
    seen: dict[str, int | None] = {}
    start = 0
    for gain, action in zip(gains, actions, strict=True):
        for thing in _things(action):
            if thing not in seen:
                seen[thing] = _first_view(thing, views)
        nameable = max((start if seen[thing] is None else seen[thing] or 0 for thing in _things(action)), default=start)
        split = start if nameable > gain else max(nameable, start)
        if start < split:
            parts.append((start, split, EXPLORE, True))
        parts.append((split, gain + 1, subgoal_name(action), True))
        start = gain + 1
    if start < length:
        parts.append((start, length, EXPLORE, False))
    return parts


def _gains(batch: TrajectoryBatch) -> Bools:
    """(T,): did the action raise the best progress so far, or open a document for the first time?"""
    progress = np.nan_to_num(batch.step_numbers("progress")).clip(0.0, 1.0)
    apart = progress + 2.0 * batch.owner_T  # a trajectory's values lie above those of the one before
    best = np.roll(np.maximum.accumulate(apart), 1) if len(apart) else apart
    best[batch.first_T] = (2.0 * batch.owner_T)[batch.first_T]
    documents, opened = batch.steps["document"], np.zeros(len(apart), np.bool_)
    texts = codes(documents)
    named = np.asarray(documents.to_numpy() != "", np.bool_) if len(apart) else opened
    keys = np.stack([batch.owner_T, texts], axis=1)[named]
    places = np.flatnonzero(named)[np.unique(keys, axis=0, return_index=True)[1]]
    places = places[~batch.first_T[places]]
    opened[places - 1] = True
    gained: Bools = (apart > best) | opened
    return gained


def _first_view(thing: str, views: Sequence[str]) -> int | None:
    """The first observation that shows a thing by its whole name: a red apple and a potato are no red potato."""
    whole = re.compile(rf"(?<![a-z]){thing}(?![a-z])")
    return next((place for place, view in enumerate(views) if whole.search(view.lower())), None)


def _things(action: str) -> list[str]:
    """What an action names, the words of each name together: `cook red onion in oven` → `red onion`, `oven`."""
    words = _WORDS.findall(action.lower())[1:]
    names = [list(group) for small, group in groupby(words, _CONNECTIVES.__contains__) if not small]
    return [" ".join(name) for name in names]
