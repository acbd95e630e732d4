"""The curate stage: every trajectory is segmented, verified and routed, once; all of it is appended to the lake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from flywheel.arrow import routes_to_arrow, segments_to_arrow, verdicts_to_arrow
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.environments.catalog import canonical, open_world
from flywheel.errors import LeakError
from flywheel.filters.catalog import make_verifiers
from flywheel.filters.routing import route
from flywheel.filters.segments import segment
from flywheel.filters.verifier import Verifier
from flywheel.trajectory import StopReason, Trajectory, Verdict

CHUNK = 128


def curate(config: Config, lake: Lake, progress: Callable[[int], None] = lambda done: None) -> dict[str, int]:
    """Curate what is not routed yet. Counts by route over the whole lake.

    Routes are committed last, so that a killed run takes up the chunk again; what it had said of the chunk before
    is not said twice.
    """
    if ids := waiting(lake, config.environment.name):
        check_splits(lake)
        with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
            verifiers = make_verifiers(config.curate.verifiers, world)
            for start in range(0, len(ids), CHUNK):
                chunk = ids[start : start + CHUNK]
                _curate(lake, lake.trajectories(chunk), verifiers)
                progress(len(chunk))
    return route_counts(lake)


def route_counts(lake: Lake) -> dict[str, int]:
    """How many trajectories of the whole lake went where."""
    counts = lake.sql("select route, count(*) as n from trajectories where route is not null group by all order by all")
    return {row["route"]: row["n"] for row in counts.to_pylist()}


def waiting(lake: Lake, environment: str) -> list[str]:
    """Ids of an environment's trajectories that are not routed yet."""
    found = lake.sql(
        f"""select trajectory_id from trajectories where route is null and environment = '{environment}'
            order by trajectory_id"""
    )
    ids: list[str] = found["trajectory_id"].to_pylist()
    return ids


def check_splits(lake: Lake) -> None:
    """Refuse a lake in which a task group lies in more than one split."""
    leaks = lake.sql(
        """select environment || ' seed ' || seed as task, list(distinct split order by split) as splits
           from trajectories group by environment, parameters, seed having count(distinct split) > 1 limit 1"""
    ).to_pylist()
    if leaks:
        raise LeakError(f"{leaks[0]['task']} lies in {' and '.join(leaks[0]['splits'])}; drop one of them")


def _curate(lake: Lake, trajectories: Sequence[Trajectory], verifiers: Sequence[Verifier]) -> None:
    judged = [one for one in trajectories if one.stop_reason is not StopReason.INFRASTRUCTURE]
    segments = {one.trajectory_id: segment(one) for one in judged}
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for verifier in verifiers:
        for verdict in verifier.verify(judged):
            verdicts[verdict.trajectory_id].append(verdict)
    routes = [route(one, verdicts[one.trajectory_id], segments.get(one.trajectory_id, [])) for one in trajectories]
    lake.append_facts(
        "segments",
        segments_to_arrow([part for parts in segments.values() for part in parts]),
        "segments",
        key=("source", "index"),
    )
    lake.append_facts(
        "verdicts",
        verdicts_to_arrow([verdict for said in verdicts.values() for verdict in said]),
        "verdicts",
        key=("verifier", "version", "arguments"),
    )
    lake.append_facts("routes", routes_to_arrow(routes), "routes")
