"""Re-verification: a verifier's newest word on stored trajectories, and all that a changed verdict touches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from flywheel.arrow import routes_to_arrow, segments_from_arrow, verdicts_from_arrow, verdicts_to_arrow
from flywheel.config import Config, VerifierConfig
from flywheel.datasets.catalog import TRAJECTORY
from flywheel.datasets.lake import Lake
from flywheel.datasets.lineage import pins_holding
from flywheel.datasets.reading import literal
from flywheel.filters.batch import read_batch
from flywheel.filters.examine import running_verifiers
from flywheel.filters.routing import COPIED, Case, route
from flywheel.trajectory import Route, Segment, Split, StopReason, Verdict, digest

CHUNK = 128


@dataclass(frozen=True, slots=True)
class Change:
    """A trajectory of which the verifier thinks otherwise. `route`: where it goes from now on, if elsewhere."""

    trajectory_id: str
    before: bool
    after: bool
    reason: str
    route: str


@dataclass(frozen=True, slots=True)
class Reverified:
    """How many were judged, what changed, and the datasets and students that hold or learned from what changed."""

    judged: int
    changes: list[Change]
    pins: list[str]
    students: list[str]


def reverify(
    config: Config,
    lake: Lake,
    name: str,
    since: int = 0,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Reverified:
    """Ask a verifier about every curated trajectory committed after a snapshot.

    Verdicts under a new version or new arguments are appended; where one that gates has changed, so is a new route.
    A changed verdict under the same version is told and not kept: the verifier or its environment is not
    deterministic.
    """
    known = {one.name: one for one in config.curate.verifiers}
    settings = known.get(name, VerifierConfig(name=name, gate=False))
    gates = {one.name for one in config.curate.verifiers if one.gate}
    alone = config.model_copy(update={"curate": config.curate.model_copy(update={"verifiers": (settings,)})})
    ids, changes = _curated_since(config, lake, since), list[Change]()
    with running_verifiers(alone) as (verifier,):
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            said = verifier.verify(read_batch(lake, chunk))
            changes += _compare(lake, said, gates, dry_run=dry_run)
            if not dry_run:
                key = ("verifier", "version", "arguments")
                lake.append_facts("verdicts", verdicts_to_arrow(said), f"reverify {name}", key=key)
            progress(len(chunk))
    touched = [one.trajectory_id for one in changes]
    students = lake.sql(
        f"""select distinct policy_id from lineage where list_contains({literal(touched)}::varchar[], trajectory_id)
            order by policy_id"""
    )["policy_id"].to_pylist()
    return Reverified(len(ids), changes, pins_holding(lake, touched), students)


def _curated_since(config: Config, lake: Lake, since: int) -> list[str]:
    with lake.catalog.read() as connection:
        late = set(connection.scalars(select(TRAJECTORY.c.trajectory_id).where(TRAJECTORY.c.snapshot > since)))
    found: list[str] = lake.sql(
        f"""select trajectory_id from trajectories
            where route is not null and stop_reason <> '{StopReason.INFRASTRUCTURE}'
              and environment = '{config.environment.name}' order by trajectory_id"""
    )["trajectory_id"].to_pylist()
    return [one for one in found if one in late]


def _compare(lake: Lake, said: Sequence[Verdict], gates: set[str], *, dry_run: bool) -> list[Change]:
    """Changes against the newest word before; routes of what changed are appended unless it is a dry run."""
    mine = f"list_contains({literal([one.trajectory_id for one in said])}, trajectory_id)"
    earlier: dict[tuple[str, str], Verdict] = {}
    for one in verdicts_from_arrow(lake.sql(f"select * from verdicts where {mine} order by created_at")):
        earlier[one.trajectory_id, one.verifier] = one
    changed = [
        (before, after)
        for after in said
        if (before := earlier.get((after.trajectory_id, after.verifier))) and before.passed != after.passed
    ]
    decisive = [
        after
        for before, after in changed
        if after.verifier in gates and (before.version, before.arguments) != (after.version, after.arguments)
    ]
    routes = _routes(lake, decisive, earlier, gates, mine)
    if not dry_run:
        lake.append_facts("routes", routes_to_arrow(routes), "reverify", key=("source",))
    to = {one.trajectory_id: str(one.route) for one in routes}
    return [
        Change(one.trajectory_id, before.passed, one.passed, _why(before, one), to.get(one.trajectory_id, ""))
        for before, one in changed
    ]


def _routes(
    lake: Lake, decisive: Sequence[Verdict], earlier: Mapping[tuple[str, str], Verdict], gates: set[str], mine: str
) -> list[Route]:
    """New routes of trajectories of which a gating verifier thinks otherwise."""
    if not decisive:
        return []
    segments: dict[str, list[Segment]] = {}
    for part in segments_from_arrow(lake.sql(f'select * from segments where {mine} order by trajectory_id, "index"')):
        segments.setdefault(part.trajectory_id, []).append(part)
    rows = lake.sql(
        f"""select t.trajectory_id, split, stop_reason, t.route_reason = '{COPIED}' as copied,
                   f.duplicate_of is not null as repeats
            from trajectories t left join fingerprints f using (trajectory_id) where {mine}"""
    ).to_pylist()
    cases = {row["trajectory_id"]: row for row in rows}
    routes = []
    for new in decisive:
        one, row = new.trajectory_id, cases[new.trajectory_id]
        others = [earlier[one, name] for name in sorted(gates - {new.verifier}) if (one, name) in earlier]
        case = Case(
            one,
            Split(row["split"]),
            StopReason(row["stop_reason"]),
            [new, *others],
            segments.get(one, []),
            bool(row["copied"]),
            bool(row["repeats"]),
        )
        source = f"reverify {new.verifier} {digest(new.version, new.arguments)}"
        routes.append(route(case, source=source, at=new.created_at))
    return routes


def _why(before: Verdict, after: Verdict) -> str:
    if (before.version, before.arguments) == (after.version, after.arguments):
        return "same version and arguments: not deterministic"
    flaw = next((f"{item.name}: {item.evidence}" for item in after.items if item.fraction < 1), "")
    return flaw or f"completion {before.completion:.0f} -> {after.completion:.0f}"
