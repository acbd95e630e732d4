"""Duplicates: which training episodes say what an earlier one says, and which records are copies under a new id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from flywheel.datasets.lake import Lake
from flywheel.datasets.neighbours import similar
from flywheel.filters.routing import Case


@dataclass(frozen=True, slots=True)
class Echoes:
    """What was said before. `copies`: same playing, timings included; `repeats`: id → (earlier id, similarity)."""

    copies: frozenset[str]
    repeats: dict[str, tuple[str, float]]

    def known(self, case: Case) -> Case:
        """What routing knows, with what it repeats."""
        return replace(case, copied=case.trajectory_id in self.copies, repeats=case.trajectory_id in self.repeats)

    def marked(self, fingerprints: pa.Table) -> pa.Table:
        """Fingerprints with what each repeats."""
        earlier = [self.repeats.get(one, (None, None)) for one in fingerprints["trajectory_id"].to_pylist()]
        for place, name in enumerate(("duplicate_of", "similarity")):
            number = fingerprints.schema.get_field_index(name)
            field = fingerprints.schema.field(number)
            values = pa.array([row[place] for row in earlier], field.type)
            fingerprints = fingerprints.set_column(number, field, values)
        return fingerprints


def echoes(
    lake: Lake,
    fresh: pa.Table,
    teaching: Sequence[bool],
    ours: Sequence[bool],
    least: float,
    unsaved: pa.Table | None = None,
) -> Echoes:
    """Compare fingerprints with those of the episodes routed before, of every iteration, and among themselves.

    `teaching` says which are verified training episodes: only they can repeat one another, and only what teaches can
    be repeated. The first in order is no echo. What was played here (`ours`) is never an echo of an import; an import
    is one already if it is the same without its loops. `unsaved`: fingerprints, with `teaching` and `ours`, that no
    commit holds.
    """
    connection = lake.connect(kinds=("fingerprints", "trajectories", "routes"))
    try:
        place = pa.array(range(fresh.num_rows), pa.int64())
        told = fresh.append_column("place", place).append_column("teaching", pa.array(teaching, pa.bool_()))
        told = told.append_column("ours", pa.array(ours, pa.bool_()))
        connection.register("new", told)
        connection.register("kept_back", told.slice(0, 0) if unsaved is None else unsaved)
        connection.execute("create temp table fresh as from new")
        connection.execute(
            """create temp view earlier as
               select f.*, -1 as place, t.route = 'supervised' and t.revoked is null as teaching, t.ours
               from fingerprints f join trajectories t using (trajectory_id)
               where t.route is not null and t.trajectory_id not in (select trajectory_id from fresh)
               union all by name from fresh
               union all by name select * replace (-1 as place) from kept_back"""
        )
        copies = connection.sql(
            """select distinct n.trajectory_id from fresh n join earlier e using (record)
               where record <> '' and e.place < n.place and (e.ours or not n.ours)"""
        ).fetchall()
        same = connection.sql(
            """with same as (
                 select n.trajectory_id, e.trajectory_id as other, n.place as late, e.place as early
                 from fresh n join earlier e using (actions)
                 where n.ours and e.ours and n.teaching and e.teaching and len(n.bands) > 0
                 union all
                 select n.trajectory_id, e.trajectory_id, n.place, e.place
                 from fresh n join earlier e using (essential)
                 where not n.ours and n.teaching and e.teaching and len(n.bands) > 0)
               select trajectory_id, min_by(other, early) from same where early < late group by all"""
        ).fetchall()
        connection.execute("create temp view before as select * from earlier where teaching")
        connection.execute("create temp view after as select * from fresh where teaching")
        places = dict(zip(fresh["trajectory_id"].to_pylist(), range(fresh.num_rows), strict=True))
        near = similar(connection, "after", "before", least).sort_by("similarity")
        connection.register("near", near)
        strangers = {
            row[0]
            for row in connection.sql(
                "select trajectory_id from before where not ours and trajectory_id in (select other from near)"
            ).fetchall()
        } | {one for one, mine in zip(fresh["trajectory_id"].to_pylist(), ours, strict=True) if not mine}
        repeats = {
            row["one"]: (row["other"], row["similarity"])
            for row in near.to_pylist()
            if places.get(row["other"], -1) < places[row["one"]]
            and (row["other"] not in strangers or row["one"] in strangers)
        }
    finally:
        connection.close()
    return Echoes(frozenset(row[0] for row in copies), repeats | {one: (other, 1.0) for one, other in same})
