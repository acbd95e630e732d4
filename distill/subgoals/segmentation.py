"""Segmentation of finished trajectories into subgoals, by several sources whose agreement is measured.

`milestones` cuts where the environment's progress shows a gain, `lived` where the plan that was in force as the episode
ran named another subgoal (`filters.segments`, which curation runs). Here are the others: `changes`, which needs neither
plan nor progress; `tools`, for agents with tools; and `chat` (`distill.labelling`), a model that reads the finished
episode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.arrow import batched, segments_from_arrow, segments_to_arrow
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import teachable
from flywheel.datasets.lake.reading import check_condition, quoted
from flywheel.datasets.lake.redaction import MARK
from flywheel.environments.tools import ANSWER
from flywheel.errors import LakeError
from flywheel.filters.segments import EXPLORE, LIVED, by_plan, segments_at
from flywheel.filters.segments import SOURCE as MILESTONES
from flywheel.filters.segments import segment as by_milestones
from flywheel.text import strings_in
from flywheel.trajectory import Segment, Trajectory

CHANGES, TOOLS = "changes/1", "tools/1"
MOST_NAMES = 3
"""Things that the task names in the name of a segment."""
SHORTEST = 3
"""Letters of what is taken for a name."""
ALIKE = 0.5
"""Observations that share fewer of their words show another state, where the environment names no places."""
TOGETHER = 64
NEAR = 1
"""Boundaries so many steps apart are one."""
Segmenter = Callable[[Trajectory], list[Segment]]


def by_changes(trajectory: Trajectory) -> list[Segment]:
    """Cut where the agent came to another place, or, without places, where what it saw changed most of its words.

    Label-free: a segment is called after the action that ended it.
    """
    seen = [step.observation for step in trajectory.steps]
    places = [step.location for step in trajectory.steps]
    if any(places):
        starts = [0, *(at for at in range(1, len(places)) if places[at] != places[at - 1])]
    else:
        starts = [0, *(at for at in range(1, len(seen)) if _likeness(seen[at - 1], seen[at]) < ALIKE)]
    ends = [*starts[1:], len(trajectory.steps)]
    return segments_at(trajectory, starts, [trajectory.steps[end - 1].action for end in ends], CHANGES)


def by_tools(trajectory: Trajectory) -> list[Segment]:
    """Cut before a tool that was called already since the last cut, but not just now: the work begins anew. To speak is
    a segment of its own, so that the planner says when everything is done.

    Label-free, for agents with tools. A segment is called after the tool that begins it and what both the task and its
    calls name, in words and for the last time: what a planner can know beforehand.
    """
    calls = [step.output.tool_calls if step.output else () for step in trajectory.steps]
    starts, called, last = [0], set[str](), ""
    for at, step_calls in enumerate(calls):
        names = [call.name for call in step_calls]
        turns = at > 0 and bool(names) != bool(calls[at - 1])
        if turns or any(name in called and name != last for name in names):
            starts, called = [*starts, at], set()
        called |= set(names)
        last = names[-1] if names else last
    ends = [*starts[1:], len(calls)]
    within = [[call for step in calls[start:end] for call in step] for start, end in zip(starts, ends, strict=True)]
    latest = {
        name: number
        for number, segment_calls in enumerate(within)
        for call in segment_calls
        for name in _words_in(call.arguments)
    }
    asked = trajectory.instruction
    subgoals = []
    for number, segment_calls in enumerate(within):
        things = [name for name, segment in latest.items() if segment == number and _stands(name, asked)]
        first = segment_calls[0].name if segment_calls else ANSWER
        subgoals.append(" ".join([first, *sorted(things, key=asked.index)[:MOST_NAMES]]))
    return segments_at(trajectory, starts, subgoals, TOOLS)


SOURCES: Mapping[str, tuple[str, Segmenter]] = {
    "milestones": (MILESTONES, by_milestones),
    "lived": (LIVED, by_plan),
    "changes": (CHANGES, by_changes),
    "tools": (TOOLS, by_tools),
}


def cut_missing(lake: Lake, source: str) -> None:
    """Cut the training trajectories by turns of tools, where that is the source and they are not cut yet. Curation cuts
    milestones and plans; `flywheel segment` asks a chat model, or goes by changes."""
    if source == TOOLS:
        segment_lake(lake, source, by_tools, "split = 'train'")


def segment_lake(
    lake: Lake,
    source: str,
    segmenter: Segmenter,
    condition: str,
    progress: Callable[[int], None] = lambda done: None,
    *,
    dry_run: bool = False,
) -> dict[str, int]:
    """Append a source's segments of what a condition over `trajectories` selects and it has not cut yet.

    Counts: trajectories, segments, and trajectories that the source cannot cut; of a dry run, what it would ask about.
    """
    check_condition(condition)
    ids: list[str] = lake.sql(
        f"""select trajectory_id from trajectories where ({condition}
) and length > 0 and stop_reason <> 'infrastructure'
              and trajectory_id not in (select trajectory_id from segmentations where source = {quoted(source)})
            order by trajectory_id"""
    )["trajectory_id"].to_pylist()
    if dry_run:
        return {"trajectories": len(ids)}
    counts = {"trajectories": 0, "segments": 0, "uncut": 0}
    for chunk in batched(lake.by_commit(ids), TOGETHER):
        segmentations = [segmenter(teachable(trajectory)) for trajectory in lake.trajectories(chunk)]
        whole = [part for segments in segmentations for part in segments]
        if whole:
            lake.append_facts("segments", segments_to_arrow(whole), f"segments of {source}", key=("source",))
        counts["trajectories"] += sum(map(bool, segmentations))
        counts["uncut"] += sum(not segments for segments in segmentations)
        counts["segments"] += len(whole)
        progress(len(chunk))
    return counts


def names_subgoals(lake: Lake, source: str) -> bool:
    """Does a source name a subgoal in any verified training trajectory? Exploring is none."""
    row = lake.sql(
        f"""select count(*) as n from segmentations join trajectories using (trajectory_id)
            where source = {quoted(source)} and subgoal <> {quoted(EXPLORE)}
              and route = 'supervised' and revoked is null"""
    ).to_pylist()[0]
    return bool(row["n"])


@dataclass(frozen=True, slots=True)
class Accord:
    """How far two sources agree on the trajectories that both have cut: F1 of inner boundaries that lie within one
    step of each other, and the mean overlap (intersection over union) of each step's segment under both."""

    one: str
    other: str
    trajectories: int
    boundaries: float
    overlap: float


def accords(lake: Lake, condition: str = "true") -> list[Accord]:
    """Agreement of every two sources of the lake."""
    check_condition(condition)
    rows = lake.sql(
        f"""select g.* from segmentations g semi join (from trajectories where ({condition}
)) using (trajectory_id) order by source, trajectory_id, "index" """
    )
    cut: dict[str, dict[str, list[Segment]]] = {}
    for part in segments_from_arrow(rows):
        cut.setdefault(part.source, {}).setdefault(part.trajectory_id, []).append(part)
    agreements = []
    for place, source in enumerate(cut):
        for other in list(cut)[place + 1 :]:
            if shared := sorted(cut[source].keys() & cut[other].keys()):
                pairs = [(cut[source][name], cut[other][name]) for name in shared]
                edges = float(np.mean([boundary_f1(a, b) for a, b in pairs]))
                overlap = float(np.mean([mean_overlap(a, b) for a, b in pairs]))
                agreements.append(Accord(source, other, len(shared), edges, overlap))
    return agreements


def boundary_f1(left: Sequence[Segment], right: Sequence[Segment]) -> float:
    """F1 of the starts of all segments but the first; 1 where neither has any."""
    a, b = ([part.start for part in parts[1:]] for parts in (left, right))
    if not a and not b:
        return 1.0
    hits = sum(any(abs(x - y) <= NEAR for y in b) for x in a) + sum(any(abs(x - y) <= NEAR for x in a) for y in b)
    return hits / (len(a) + len(b))


def mean_overlap(left: Sequence[Segment], right: Sequence[Segment]) -> float:
    """Mean over steps of |A ∩ B| / |A ∪ B|, A and B the segments that a step lies in."""
    a, b = (np.repeat(range(len(parts)), [part.end - part.start for part in parts]) for parts in (left, right))
    pairs, inverse, both = np.unique(np.stack([a, b]), axis=1, return_inverse=True, return_counts=True)
    union = np.bincount(a)[pairs[0]] + np.bincount(b)[pairs[1]] - both
    return float((both / union)[inverse].mean())


def checked(trajectory: Trajectory, parts: Sequence[tuple[int, int, str]], source: str) -> list[Segment]:
    """Segments from (first step, last step, subgoal). Raises `LakeError` unless they are contiguous, in order, named,
    and cover every step: nothing is repaired."""
    expected = 0
    for first, last, subgoal in parts:
        if first != expected or last < first or not subgoal.strip():
            raise LakeError(f"segment {first}..{last} '{subgoal}' should begin at step {expected} and have a name")
        expected = last + 1
    if expected != trajectory.length:
        raise LakeError(f"the segments cover {expected} of {trajectory.length} steps")
    return segments_at(trajectory, [first for first, _, _ in parts], [subgoal.strip() for *_, subgoal in parts], source)


def _words_in(arguments: str) -> Iterator[str]:
    """What arguments name in words: no numbers, and no placeholders of private data."""
    for value in strings_in(arguments):
        if len(value) >= SHORTEST and not value.startswith(MARK) and not any(map(str.isdigit, value)):
            yield value


def _stands(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _likeness(left: str, right: str) -> float:
    a, b = set(left.split()), set(right.split())
    return len(a & b) / max(len(a | b), 1)
