"""What a student learns from: trajectories of one snapshot with their segments, and where each may teach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from flywheel.arrow import batched, segments_from_arrow
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import teachable
from flywheel.datasets.lake.reading import check_condition, quoted
from flywheel.datasets.versions.contamination import refuse_contamination
from flywheel.datasets.versions.versions import find, selected
from flywheel.distill.data.renaming import exchangeable_names, exchangeable_values
from flywheel.distill.data.sample_weights import draw_weights
from flywheel.environments.catalog import GATEWAY
from flywheel.errors import ContaminationError, TrainingError
from flywheel.filters.segments import LIVED
from flywheel.policies.factory import NOISY_EXPERT, TUTORED
from flywheel.policies.tokenizer import named_things, named_values
from flywheel.runtime.distributed import broadcast
from flywheel.trajectory import RouteTo, Segment, Trajectory, digest

VERIFIED = frozenset({RouteTo.SUPERVISED, RouteTo.DUPLICATE})
"""Routes of what every role may learn from; the others teach executors what they completed."""


CHUNK = 256
"""Trajectories that are in memory together."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Which trajectories teach, and how often; they themselves stay in the lake until they are read.

    `routes`, `weights`, `tasks`: of each trajectory. `segments`: the source that cut them. `spoken`: what the agents'
    own actions name; `exchangeable`: groups of names that can change places; `constants`: numbers that stay what they
    are; `calls_tools`: are actions tool calls?
    `condition`: the SQL that chose the corpus, or empty where it is an iteration's.
    """

    lake: Lake
    routes: dict[str, RouteTo]
    weights: dict[str, float]
    tasks: dict[str, str]
    spoken: list[str]
    exchangeable: list[list[str]]
    constants: list[str]
    calls_tools: bool
    segments: str
    snapshot: int
    condition: str

    @property
    def digest(self) -> str:
        weighed = [
            (trajectory_id, route, round(self.weights[trajectory_id], 6))
            for trajectory_id, route in sorted(self.routes.items())
        ]
        return digest("corpus", weighed, size=8)

    def read(self, ids: Sequence[str]) -> Iterator[tuple[Trajectory, list[Segment]]]:
        """Trajectories with their segments, in the order in which they lie in the lake, a few in memory at a time."""
        order = self.lake.by_commit(ids)
        connection = self.lake.connect(self.snapshot, kinds=("segments",))
        try:
            for start in range(0, len(order), CHUNK):
                some = order[start : start + CHUNK]
                cut = _segments(connection, some, self.segments)
                for trajectory in self.lake.trajectories(some):
                    yield teachable(trajectory), cut.get(trajectory.trajectory_id, [])
        finally:
            connection.close()


def load_corpus(
    config: Config, lake: Lake, iteration: int, condition: str = "", dataset: str = "", *, hierarchical: bool = True
) -> Corpus:
    """Training trajectories up to an iteration, or exactly those that a condition over `trajectories` selects, or
    those of a version of a dataset (name@v3).

    Of an iteration: verified ones, imports and recorded runs among them, and teachers' that at least hold completed
    segments; a student's failed episode teaches nobody, its way to a milestone is mostly its own wandering.
    Of an import, what only a policy can have written is read as absent. Raises `ContaminationError` where one of them
    is of a held-out task, or so like one (`curate.leak`) that it gives it away, and `TrainingError` where nothing is
    left, or where a hierarchy would learn from an episode without segments. Where agents' own plans are the segments,
    an episode whose agent named no subgoal is left out of a hierarchy's corpus.
    """
    snapshot = broadcast(lake.snapshot())
    if dataset:
        routes, condition = _pinned(lake, snapshot, dataset), f"dataset {find(lake, dataset).title}"
    elif condition:
        routes = _selected(lake, snapshot, condition)
    else:
        routes = _collected(lake, snapshot, iteration)
    if not VERIFIED & set(routes.values()):
        problem = (
            f"nothing verified satisfies: {condition}" if condition else "no verified training trajectory in the lake"
        )
        raise TrainingError(f"{problem}; run `flywheel collect` and `flywheel curate`")
    source = quoted(config.train.segments)
    cut = lake.sql(f"select distinct trajectory_id from segmentations where source = {source}", at=snapshot)
    uncut = sorted(routes.keys() - set(cut["trajectory_id"].to_pylist())) if hierarchical else []
    if config.train.segments == LIVED and len(uncut) < len(routes):
        routes, uncut = {name: route for name, route in routes.items() if name not in set(uncut)}, []
    if uncut:
        raise TrainingError(
            f"{len(uncut)} of {len(routes)} trajectories have no segments of {config.train.segments}, as {uncut[0]}; "
            f"run: flywheel segment {config.train.segments.partition('/')[0]}"
        )
    refuse_contamination(lake, list(routes), config.curate.leak)
    weighed = draw_weights(lake, list(routes), config.balance, iteration)
    names = _names(lake, snapshot, list(routes))
    return Corpus(lake, routes, weighed, *names, segments=config.train.segments, snapshot=snapshot, condition=condition)


def _segments(connection: duckdb.DuckDBPyConnection, ids: Sequence[str], source: str) -> dict[str, list[Segment]]:
    connection.register("wanted", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
    table = connection.sql(
        f"""from segmentations semi join wanted using (trajectory_id) where source = {quoted(source)}
            order by trajectory_id, "index" """
    ).to_arrow_table()
    connection.unregister("wanted")
    cut: dict[str, list[Segment]] = {}
    for part in segments_from_arrow(table):
        cut.setdefault(part.trajectory_id, []).append(part)
    return cut


def _names(
    lake: Lake, snapshot: int, ids: Sequence[str]
) -> tuple[dict[str, str], list[str], list[list[str]], list[str], bool]:
    """(task by trajectory, what the agents' own actions name, which of these names can change places, numbers that stay
    what they are, are the actions tool calls?)."""
    connection = lake.connect(snapshot, kinds=("trajectories", "steps"))
    try:
        connection.register("wanted", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
        tasks = connection.sql("select trajectory_id, task_id from trajectories semi join wanted using (trajectory_id)")
        by_trajectory = dict(tasks.fetchall())
        mine = "from steps semi join wanted using (trajectory_id)"
        (taught,) = connection.sql(f"select count(*) {mine} where trainable").fetchall()[0]
        if not taught:
            raise TrainingError("nothing to learn from: no step of these trajectories may be taught")
        by_agents = f"(from trajectories where environment like '{GATEWAY}%')"
        of_environments = f"{mine} anti join {by_agents} using (trajectory_id) where trainable"
        names = named_things(
            action for (action,) in connection.sql(f"select distinct action {of_environments}").fetchall()
        )
        called = connection.sql(
            f"""select arguments, result from tool_calls semi join wanted using (trajectory_id)
                semi join {by_agents} using (trajectory_id)"""
        )
        values = named_values(_pairs(called))
        names = sorted({*names, *values}, key=lambda name: (-len(name), name))
        documents = connection.sql(f"select distinct document {mine} where document <> ''")
        chunks = batched(lake.by_commit(ids) if values else [], CHUNK)
        taught = (teachable(each) for chunk in chunks for each in lake.trajectories(chunk))
        groups, constants = exchangeable_values(taught)
        things = exchangeable_names([name for name in names if name not in values], _texts(documents))
        return by_trajectory, names, [*groups, *([things] if things else [])], constants, bool(values)
    finally:
        connection.close()


def _pairs(relation: duckdb.DuckDBPyRelation) -> Iterator[str]:
    """Both columns of every row, without NULLs."""
    for batch in relation.to_arrow_reader(CHUNK):
        for column in batch.columns:
            yield from filter(None, column.to_pylist())


def _texts(relation: duckdb.DuckDBPyRelation) -> Iterator[str]:
    for batch in relation.to_arrow_reader(CHUNK):
        yield from batch.column(0).to_pylist()


def refuse_revoked(lake: Lake, ids: Sequence[str], snapshot: int) -> None:
    """Raise `TrainingError` if the lake took something back that was read at a snapshot."""
    gone = lake.sql("select trajectory_id from revocations order by trajectory_id")["trajectory_id"].to_pylist()
    if lost := sorted(set(gone) & set(ids)):
        raise TrainingError(
            f"{len(lost)} trajectories of snapshot {snapshot} were taken back meanwhile, as {lost[0]}; "
            "distill again: the student would hold what is gone"
        )


def _collected(lake: Lake, snapshot: int, iteration: int) -> dict[str, RouteTo]:
    rows = lake.sql(
        f"""select trajectory_id, route from trajectories
            where split = 'train' and (purpose in ('collect', 'recorded') and ours or purpose = 'imported')
              and iteration <= {iteration} and revoked is null
              and (route = '{RouteTo.SUPERVISED}'
                   or route = '{RouteTo.EXECUTOR}' and policy in ('{NOISY_EXPERT}', '{TUTORED}'))
            order by trajectory_id""",
        at=snapshot,
    ).to_pylist()
    return {row["trajectory_id"]: RouteTo(row["route"]) for row in rows}


def _selected(lake: Lake, snapshot: int, condition: str) -> dict[str, RouteTo]:
    check_condition(condition)
    rows = lake.sql(
        f"""select trajectory_id, split, route, revoked is not null as revoked from trajectories where ({condition}
) order by trajectory_id""",
        at=snapshot,
    ).to_pylist()
    return _fit(rows, f"nothing in the lake satisfies: {condition}")


def _pinned(lake: Lake, snapshot: int, title: str) -> dict[str, RouteTo]:
    connection = lake.connect(snapshot)
    try:
        connection.register(
            "pinned", pa.table({"trajectory_id": pa.array(selected(lake, find(lake, title)), pa.string())})
        )
        table = connection.sql(
            """select trajectory_id, split, route, revoked is not null as revoked
               from trajectories semi join pinned using (trajectory_id) order by trajectory_id"""
        ).to_arrow_table()
        return _fit(table.to_pylist(), f"the dataset {title} is empty")
    finally:
        connection.close()


def _fit(rows: Sequence[dict[str, Any]], nothing: str) -> dict[str, RouteTo]:
    """Routes of what was asked for; raises `TrainingError` or `ContaminationError` where some of it may not teach."""
    if not rows:
        raise TrainingError(nothing)
    if held := [row for row in rows if row["split"] != "train"]:
        raise ContaminationError(
            f"{len(held)} of {len(rows)} selected trajectories are of held-out tasks, as {held[0]['trajectory_id']} "
            f"({held[0]['split']}); add: and split = 'train'"
        )
    unfit = [row for row in rows if row["revoked"] or row["route"] in (None, str(RouteTo.QUARANTINE))]
    if unfit:
        raise TrainingError(
            f"{len(unfit)} of {len(rows)} selected trajectories are not curated, quarantined or revoked, as "
            f"{unfit[0]['trajectory_id']}; add: and route <> 'quarantine' and revoked is null"
        )
    return {row["trajectory_id"]: RouteTo(row["route"]) for row in rows}
