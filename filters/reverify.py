"""Re-verification of stored trajectories with the current verifier, and everything that a changed verdict affects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from sqlalchemy import select

from flywheel.arrow import routes_to_arrow, segments_from_arrow, verdicts_from_arrow, verdicts_to_arrow
from flywheel.config.curate import VerifierConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import TRAJECTORY
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import literal, quoted
from flywheel.datasets.maintenance.lineage import datasets_holding
from flywheel.environments.catalog import canonical
from flywheel.filters.batch import read_batch
from flywheel.filters.routing import COPIED, Case, route
from flywheel.filters.verifiers.pool import BatchVerifier, verify
from flywheel.filters.waiting import reported_since, unteachable, warn_unverifiable
from flywheel.trajectory import Route, RouteTo, Segment, Split, StopReason, TrajectoryOrigin, Verdict, digest

CHUNK = 128
REPORTED = "reported again"
"""Source of a route that another outcome left as it was."""


@dataclass(frozen=True, slots=True)
class Change:
    """A trajectory of which the verifier thinks otherwise. `before` None: it had not been asked.

    `route`: where it goes from now on, if elsewhere.
    """

    trajectory_id: str
    before: bool | None
    after: bool
    reason: str
    route: str


@dataclass(frozen=True, slots=True)
class Reverified:
    """How many were judged, what changed, and the datasets and students that hold or learned from what changed."""

    judged: int
    changes: list[Change]
    datasets: list[str]
    students: list[str]


InForce = Mapping[tuple[str, str], Verdict]
"""(trajectory, verifier) → its newest verdict."""


def reverify(
    config: Config,
    lake: Lake,
    name: str,
    since: int = 0,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    reported: Sequence[str] | None = None,
) -> Reverified:
    """Ask a verifier about every curated trajectory committed after a snapshot, and compare with its newest verdict.

    Verdicts under another version or other arguments are appended; where one that gates has changed, so is a new
    route. A changed verdict under the same version and arguments is told and not kept: the verifier or its
    environment is not deterministic. `reported`: look at these alone, of which another outcome was reported since.
    """
    known = {verifier.name: verifier for verifier in config.curate.verifiers}
    settings = known.get(name, VerifierConfig(name=name, gate=False))
    gates = {verifier.name for verifier in config.curate.verifiers if verifier.gate}
    alone = config.model_copy(update={"curate": config.curate.model_copy(update={"verifiers": (settings,)})})
    ids = _curated_since(config, lake, since) if reported is None else reported
    changes, unverifiable, again = list[Change](), dict[str, str](), frozenset(reported or ())
    with closing(BatchVerifier(alone, verify)) as batch_verifier:
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            at = lake.now()
            findings = batch_verifier.examine(read_batch(lake, chunk))
            unverifiable |= findings.unverifiable
            verdicts = [replace(verdict, created_at=at) for row in findings.verdicts for verdict in row]
            mine = f"list_contains({literal(chunk)}, trajectory_id)"
            before = _in_force(lake, mine)
            routes = _routes(
                lake,
                config,
                [verdict for verdict in verdicts if _reroutes(before, verdict, gates, again)],
                before,
                gates,
                mine,
            )
            changes += _changes(verdicts, before, routes)
            if not dry_run:  # routes first: a killed run finds the old verdict in force and goes on from there
                _append(
                    lake, [verdict for verdict in verdicts if not _same_maker(before, verdict, again)], routes, name
                )
            progress(len(chunk))
    warn_unverifiable(unverifiable)
    touched = [change.trajectory_id for change in changes]
    students = lake.sql(
        f"""select distinct policy_id from lineage where list_contains({literal(touched)}::varchar[], trajectory_id)
            order by policy_id"""
    )["policy_id"].to_pylist()
    return Reverified(len(ids), changes, datasets_holding(lake, touched), students)


def reverify_reported(config: Config, lake: Lake) -> None:
    """Verify anew what another outcome was reported of since it was curated, with every verifier of the pipeline.

    Where its route stays as it is, it is said again, so that the same outcome is not looked at twice.
    """
    late = reported_since(config, lake)
    for verifier in config.curate.verifiers if late else ():
        reverify(config, lake, verifier.name, reported=late)
    for start in range(0, len(late), CHUNK):
        still = f"list_contains({literal(late[start : start + CHUNK])}, trajectory_id) and reported_at > routed_at"
        rows = lake.sql(
            f"select trajectory_id, route, verified = 1 as verified, route_reason from trajectories where {still}"
        ).to_pylist()
        at = lake.now()
        same = [
            Route(row["trajectory_id"], RouteTo(row["route"]), row["verified"], row["route_reason"], REPORTED, at)
            for row in rows
        ]
        lake.append_facts("routes", routes_to_arrow(same), REPORTED, key=("source", "created_at"))


def _curated_since(config: Config, lake: Lake, since: int) -> list[str]:
    with lake.catalog.read() as connection:
        late = set(connection.scalars(select(TRAJECTORY.c.trajectory_id).where(TRAJECTORY.c.snapshot > since)))
    trajectory_ids: list[str] = lake.sql(
        f"""select trajectory_id from trajectories
            where route is not null and stop_reason <> '{StopReason.INFRASTRUCTURE}'
              and environment = {quoted(config.environment.name)}
              and parameters = {quoted(canonical(config.environment.parameters))} order by trajectory_id"""
    )["trajectory_id"].to_pylist()
    return [trajectory_id for trajectory_id in trajectory_ids if trajectory_id in late]


def _in_force(lake: Lake, mine: str) -> InForce:
    verdicts = verdicts_from_arrow(lake.sql(f"select * from verdicts where {mine} order by created_at"))
    return {(verdict.trajectory_id, verdict.verifier): verdict for verdict in verdicts}


def _same_maker(before: InForce, after: Verdict, reported: Collection[str]) -> bool:
    """Was the newest verdict made by this version under these arguments, of the same outcome?"""
    if after.trajectory_id in reported:
        return False
    old = before.get((after.trajectory_id, after.verifier))
    return old is not None and (old.version, old.arguments) == (after.version, after.arguments)


def _changed(before: InForce, after: Verdict) -> bool:
    """Is it another word on success or on honesty? The first word changes something if it denies."""
    old = before.get((after.trajectory_id, after.verifier))
    if old is None:
        return not after.passed
    return (old.passed, _honest(old)) != (after.passed, _honest(after))


def _honest(verdict: Verdict) -> bool:
    return verdict.integrity >= verdict.integrity_threshold


def _reroutes(before: InForce, after: Verdict, gates: set[str], reported: Collection[str]) -> bool:
    """Does the route depend on it? What another gate has not looked at is not verified on this one's word."""
    asked = all((after.trajectory_id, name) in before for name in gates - {after.verifier})
    decides = after.verifier in gates and (asked or not after.passed)
    return decides and _changed(before, after) and not _same_maker(before, after, reported)


def _routes(
    lake: Lake, config: Config, verdicts: Sequence[Verdict], before: InForce, gates: set[str], mine: str
) -> list[Route]:
    """Routes under new verdicts, where they differ from those in force."""
    if not verdicts:
        return []
    segments: dict[str, list[Segment]] = {}
    for part in segments_from_arrow(lake.sql(f'select * from segments where {mine} order by trajectory_id, "index"')):
        segments.setdefault(part.trajectory_id, []).append(part)
    rows = lake.sql(
        f"""select t.trajectory_id, split, stop_reason, ours, route, verified = 1 as verified, route_reason,
                   f.duplicate_of is not null as repeats
            from trajectories t left join fingerprints f using (trajectory_id) where {mine}"""
    ).to_pylist()
    cases, problems = {row["trajectory_id"]: row for row in rows}, unteachable(config, lake, mine)
    routes = []
    for new in verdicts:
        trajectory_id, row = new.trajectory_id, cases[new.trajectory_id]
        others = [
            before[trajectory_id, name] for name in sorted(gates - {new.verifier}) if (trajectory_id, name) in before
        ]
        case = Case(
            trajectory_id,
            Split(row["split"]),
            StopReason(row["stop_reason"]),
            [new, *others],
            segments.get(trajectory_id, []),
            row["route_reason"] == COPIED,
            bool(row["repeats"]),
            TrajectoryOrigin.COLLECTED if row["ours"] else TrajectoryOrigin.IMPORTED,
            config.curate.vouch,
            problems.get(trajectory_id, ""),
        )
        new_route = route(
            case, source=f"reverify {new.verifier} {digest(new.version, new.arguments)}", at=new.created_at
        )
        if (new_route.route, new_route.verified, new_route.reason) != (
            row["route"],
            row["verified"],
            row["route_reason"],
        ):
            routes.append(new_route)
    return routes


def _changes(verdicts: Sequence[Verdict], before: InForce, routes: Sequence[Route]) -> list[Change]:
    to = {routed.trajectory_id: str(routed.route) for routed in routes}
    changes = []
    for verdict in verdicts:
        if _changed(before, verdict):
            old = before.get((verdict.trajectory_id, verdict.verifier))
            route = to.get(verdict.trajectory_id, "")
            changes.append(
                Change(verdict.trajectory_id, old.passed if old else None, verdict.passed, _why(old, verdict), route)
            )
    return changes


def _append(lake: Lake, verdicts: Sequence[Verdict], routes: Sequence[Route], name: str) -> None:
    lake.append_facts("routes", routes_to_arrow(routes), f"reverify {name}", key=("source", "created_at"))
    key = ("verifier", "version", "arguments", "created_at")
    lake.append_facts("verdicts", verdicts_to_arrow(verdicts), f"reverify {name}", key=key)


def _why(old: Verdict | None, new: Verdict) -> str:
    if old and (old.version, old.arguments) == (new.version, new.arguments):
        return "same version and arguments: not deterministic"
    flaw = next((f"{item.name}: {item.evidence}" for item in new.items if item.fraction < 1), "")
    return flaw or (f"completion {old.completion:.0f} -> {new.completion:.0f}" if old else "denied")
