"""Duplicate training episodes, and records that are copies of others under a new id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.near_duplicates import near_duplicates
from flywheel.filters.routing import Case


@dataclass(frozen=True, slots=True)
class Repeats:
    """Earlier duplicates. `copies`: the same playing, timings included; `repeats`: id → (earlier id, similarity)."""

    copies: frozenset[str]
    repeats: dict[str, tuple[str, float]]

    def with_repeats(self, case: Case) -> Case:
        """What routing knows, with what it repeats."""
        return replace(case, copied=case.trajectory_id in self.copies, repeats=case.trajectory_id in self.repeats)

    def marked(self, fingerprints: pa.Table) -> pa.Table:
        """Fingerprints with what each repeats."""
        earlier = [
            self.repeats.get(trajectory_id, (None, None)) for trajectory_id in fingerprints["trajectory_id"].to_pylist()
        ]
        for place, name in enumerate(("duplicate_of", "similarity")):
            number = fingerprints.schema.get_field_index(name)
            field = fingerprints.schema.field(number)
            values = pa.array([row[place] for row in earlier], field.type)
            fingerprints = fingerprints.set_column(number, field, values)
        return fingerprints


def compared(fresh: pa.Table, teaching: Sequence[bool], ours: Sequence[bool]) -> pa.Table:
    """Fingerprints with their places and with what `repeats` must know of each."""
    columns = {
        "place": pa.array(range(fresh.num_rows), pa.int64()),
        "teaching": pa.array(teaching, pa.bool_()),
        "ours": pa.array(ours, pa.bool_()),
    }
    for name, values in columns.items():
        fresh = fresh.append_column(name, values)
    return fresh


def repeats(lake: Lake, fresh: pa.Table, least: float, unsaved: pa.Table | None = None) -> Repeats:
    """Compare fingerprints, as `compared` makes them, with those of the episodes routed before, of every iteration, and
    among themselves.

    `teaching` marks verified training episodes: only they can repeat one another, and only what teaches can be
    repeated. The first in order is no repeat. What was played here (`ours`) is never a repeat of an import; an import
    is already one if it is the same without its loops. `unsaved`: fingerprints compared before that no commit holds.
    """
    connection = lake.connect(kinds=("fingerprints", "trajectories", "routes"))
    try:
        connection.register("new", fresh)
        connection.register("unsaved", fresh.slice(0, 0) if unsaved is None else unsaved)
        connection.execute("create temp table fresh as from new")
        connection.execute(
            """create temp view earlier as
               select f.*, -1 as place, t.route = 'supervised' and t.revoked is null as teaching, t.ours
               from fingerprints f join trajectories t using (trajectory_id)
               where t.route is not null and t.trajectory_id not in (select trajectory_id from fresh)
               union all by name from fresh
               union all by name select * replace (-1 as place) from unsaved"""
        )
        # Without the signatures, which are most of a fingerprint: some 200 bytes an episode.
        connection.execute(
            """create temp table keys as
               select trajectory_id, place, teaching, ours, record, actions, essential from earlier"""
        )
        copies = connection.sql(
            """select distinct n.trajectory_id from fresh n join keys e using (record)
               where record <> '' and e.place < n.place and (e.ours or not n.ours)"""
        ).fetchall()
        same = connection.sql(
            """with same as (
                 select n.trajectory_id, e.trajectory_id as other, n.place as late, e.place as early
                 from fresh n join keys e using (actions)
                 where n.ours and e.ours and n.teaching and e.teaching and len(n.bands) > 0
                 union all
                 select n.trajectory_id, e.trajectory_id, n.place, e.place
                 from fresh n join keys e using (essential)
                 where not n.ours and n.teaching and e.teaching and len(n.bands) > 0)
               select trajectory_id, min_by(other, early) from same where early < late group by all"""
        ).fetchall()
        connection.execute("create temp view before as select * from earlier where teaching")
        connection.execute("create temp view after as select * from fresh where teaching")
        connection.register("near", near_duplicates(connection, "after", "before", least))
        near = connection.sql(
            """select near.one, near.other, near.similarity
               from near join fresh n on n.trajectory_id = near.one join keys e on e.trajectory_id = near.other
               where e.place < n.place and (e.ours or not n.ours) order by near.similarity"""
        ).fetchall()
    finally:
        connection.close()
    similar = {repeat: (other, similarity) for repeat, other, similarity in near}  # the most similar comes last
    return Repeats(frozenset(row[0] for row in copies), similar | {repeat: (other, 1.0) for repeat, other in same})
