"""The curate stage: every trajectory is segmented, verified, compared and routed, once; all is appended to the lake."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flywheel.arrow import batched, routes_to_arrow, segments_to_arrow, verdicts_to_arrow
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import teachable
from flywheel.filters.batch import read_batch
from flywheel.filters.calibration.calibrate import gating
from flywheel.filters.duplicates import Repeats, compared, repeats
from flywheel.filters.reverify import reverify_reported
from flywheel.filters.routing import Case, route
from flywheel.filters.segments import by_plan
from flywheel.filters.verifiers.pool import Findings, verify_batches
from flywheel.filters.waiting import check_splits, unrouted, unteachable, waiting, warn_unverifiable
from flywheel.trajectory import (
    OURS,
    Route,
    Segment,
    Split,
    StopReason,
    TrajectoryOrigin,
    Verdict,
)

log = logging.getLogger(__name__)

TOGETHER = 4
"""Chunks that are compared with the lake and committed together; memory holds a few more."""


def curate(config: Config, lake: Lake, progress: Callable[[int], None] = lambda done: None) -> dict[str, int]:
    """Curate what is not routed yet. Counts by route over the whole lake.

    Routes are committed last, so that a killed run takes up the chunk again; what it had said of the chunk before
    is not said twice. Nothing but its route is said of an episode that the infrastructure broke.
    """
    lake.append_facts("routes", routes_to_arrow(_broken(lake, config)), "routes", key=("source",))
    reverify_reported(config, lake)
    unverifiable: dict[str, str] = {}
    for group, echo, routes in _curated(config, lake, dry_run=False):
        _append(lake, group, echo, routes)
        for findings in group:
            unverifiable |= findings.unverifiable
        progress(len(routes))
    warn_unverifiable(unverifiable)
    return route_counts(lake)


def preview(config: Config, lake: Lake, progress: Callable[[int], None] = lambda done: None) -> list[dict[str, Any]]:
    """Where everything that is not routed yet would go and why: counts with an example. Nothing is written."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for routes in chain([_broken(lake, config)], (routes for _, _, routes in _curated(config, lake, dry_run=True))):
        for routed in routes:
            by_reason.setdefault((str(routed.route), routed.reason), []).append(routed.trajectory_id)
        progress(len(routes))
    return [
        {"route": to, "reason": reason, "trajectories": len(ids), "example": min(ids)}
        for (to, reason), ids in sorted(by_reason.items())
    ]


def _curated(config: Config, lake: Lake, *, dry_run: bool) -> Iterator[tuple[Sequence[Findings], Repeats, list[Route]]]:
    """(findings, what they repeat, routes) of groups of chunks; in a dry run, groups before it are remembered."""
    chunks = waiting(lake, config)
    if not chunks:
        return
    check_splits(lake)
    problems = unteachable(config, lake)
    gates = gating(config, lake)
    batches = (read_batch(lake, chunk) for chunk in chunks)
    unsaved: pa.Table | None = None
    for group in batched(verify_batches(config, batches, len(chunks)), TOGETHER):
        prints = pa.concat_tables([findings.fingerprints for findings in group])
        cases = [case for findings in group for case in cases_of(findings, gates, config.curate.vouch, problems)]
        teaching = [case.split is Split.TRAIN and case.verified for case in cases]
        fresh = compared(prints, teaching, [case.origin in OURS for case in cases])
        echo = repeats(lake, fresh, config.curate.near_duplicate, unsaved)
        at = lake.now()
        yield group, echo, [route(echo.with_repeats(case), at=at) for case in cases]
        if dry_run:
            unsaved = fresh if unsaved is None else pa.concat_tables([unsaved, fresh])


def decisive(verdicts: Sequence[Verdict], gates: Sequence[bool]) -> list[Verdict]:
    """The verdicts of the verifiers that gate."""
    return [verdict for verdict, decides in zip(verdicts, gates, strict=True) if decides]


def cases_of(
    findings: Findings, gates: Sequence[bool], vouchers: Sequence[str], problems: Mapping[str, str]
) -> list[Case]:
    """What routing knows of each trajectory, but for what it repeats. `gates` says which of the pipeline's verifiers
    decide, `vouchers` whose word is enough for an import, `problems` why an import may not teach."""
    batch = findings.batch
    return [
        Case(
            trajectory_id,
            Split(split),
            StopReason(stop),
            decisive(verdicts, gates) if verdicts else (),
            segments,
            origin=TrajectoryOrigin(origin),
            vouchers=tuple(vouchers),
            problem=problems.get(trajectory_id, "") or findings.unverifiable.get(trajectory_id, ""),
        )
        for trajectory_id, split, stop, origin, verdicts, segments in zip(
            batch.ids,
            batch.texts("split"),
            batch.texts("stop_reason"),
            batch.texts("origin"),
            findings.verdicts,
            findings.segments,
            strict=True,
        )
    ]


def route_counts(lake: Lake) -> dict[str, int]:
    """How many trajectories of the whole lake went where."""
    counts = lake.sql("select route, count(*) as n from trajectories where route is not null group by all order by all")
    return {row["route"]: row["n"] for row in counts.to_pylist()}


def route_reasons(lake: Lake) -> list[dict[str, Any]]:
    """How many trajectories of the whole lake went where for which reason, with one to look at."""
    rows: list[dict[str, Any]] = lake.sql(
        """select route, route_reason as reason, count(*) as trajectories, min(trajectory_id) as example
           from trajectories where route is not null group by all order by route, trajectories desc, reason"""
    ).to_pylist()
    return rows


def _broken(lake: Lake, config: Config) -> list[Route]:
    """Routes of the episodes that the infrastructure broke."""
    now = lake.now()
    broken = unrouted(lake, config, f"stop_reason = '{StopReason.INFRASTRUCTURE}'")
    return [
        route(Case(trajectory_id, Split.TRAIN, StopReason.INFRASTRUCTURE, (), ()), at=now)
        for trajectory_id, _ in broken
    ]


def _plans(findings: Findings) -> list[Segment]:
    """Segments of the plans that agents named as they went, where a word of theirs counts."""
    if not pc.any(pc.not_equal(findings.batch.steps["subgoal"], "")).as_py():
        return []
    return [part for trajectory in findings.batch.objects for part in by_plan(teachable(trajectory))]


def _append(lake: Lake, group: Sequence[Findings], echo: Repeats, routes: Sequence[Route]) -> None:
    segments = [part for findings in group for row in findings.segments for part in row]
    segments += [part for findings in group for part in _plans(findings)]
    verdicts = [verdict for findings in group for row in findings.verdicts for verdict in row]
    prints = echo.marked(pa.concat_tables([findings.fingerprints for findings in group]))
    lake.append_facts("segments", segments_to_arrow(segments), "segments", key=("source",))
    lake.append_facts("verdicts", verdicts_to_arrow(verdicts), "verdicts", key=("verifier", "version", "arguments"))
    lake.append_facts("fingerprints", prints, "fingerprints", key=("source",))
    lake.append_facts("routes", routes_to_arrow(routes), "routes", key=("source",))
