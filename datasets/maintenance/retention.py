"""Deletion: retired trajectories leave the newest snapshot, purged ones leave every file.

Either way their ids stay in the catalog, so that a late retry cannot bring them back.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from flywheel.datasets.lake.catalog import FACT, PART, TRAJECTORY, new_snapshot
from flywheel.datasets.lake.files import Written, read_rows, row_groups
from flywheel.datasets.lake.lake import LOOKUP, Lake
from flywheel.datasets.lake.part_files import file_name, part_row
from flywheel.datasets.lake.reading import check_condition
from flywheel.datasets.maintenance.compaction import (
    collect_garbage,
    compact,
    delete_garbage,
    discard_later,
    overtaken,
    rows,
)
from flywheel.datasets.maintenance.lineage import revoke
from flywheel.errors import LakeError

Part = Row[Any]


def purge(lake: Lake, trajectory_ids: Sequence[str], reason: str) -> int:
    """Remove trajectories from every file, history included. How many were there. Datasets that held one are flagged.

    The view `revocations` records that it happened. What judges answered is dropped as a whole.
    """
    known = sorted(lake.known_ids(trajectory_ids))
    if known:
        revoke(lake, known, f"purged: {reason}")
        shutil.rmtree(lake.root / "judge", ignore_errors=True)
    while parts := _holding(lake, known, live=False):
        for part in parts:
            _rewrite(lake, part, known)
    delete_garbage(lake, grace=0.0)
    return len(known)


def of_subject(lake: Lake, subject: str) -> list[str]:
    """Ids of all trajectories that are one person's data, in whichever snapshot."""
    with lake.catalog.read() as connection:
        files = connection.execute(select(PART).where(PART.c.kind == "trajectories")).all()
    trajectory_ids: set[str] = set()
    for file in files:
        for table in row_groups(lake.source(file.name, file.kind), ["trajectory_id", "subject"]):
            if "subject" in table.column_names:  # files of an older schema have none
                trajectory_ids.update(table.filter(pc.equal(table["subject"], subject))["trajectory_id"].to_pylist())
    return sorted(trajectory_ids)


def due(lake: Lake, condition: str) -> list[str]:
    """What a retention rule (SQL over `trajectories`) selects, less what a student learned from."""
    check_condition(condition)
    trajectory_ids: list[str] = lake.sql(
        f"""select trajectory_id from trajectories anti join lineage using (trajectory_id) where ({condition}
)
            order by trajectory_id"""
    )["trajectory_id"].to_pylist()
    return trajectory_ids


def retire(lake: Lake, condition: str) -> int:
    """Let what the condition selects leave the newest snapshot. How many left.

    Datasets and earlier snapshots go on reading them until `collect_garbage` finds that the files are not needed.
    """
    ids = due(lake, condition)
    while parts := _holding(lake, ids, live=True):
        for part in parts:
            _leave_out(lake, part, ids)
    return len(ids)


def tend(lake: Lake, rules: Sequence[str]) -> dict[str, int]:
    """What a lake needs now and then: retention rules, compaction, garbage collection. How much each of them did."""
    return {
        "retired": sum(retire(lake, rule) for rule in rules),
        "merged": compact(lake),
        "deleted": collect_garbage(lake),
    }


def _holding(lake: Lake, ids: Sequence[str], *, live: bool) -> list[list[Part]]:
    """The parts that still have a row of these trajectories, each as its files.

    The catalog knows which live parts do; of those that only earlier snapshots read, each file is asked.
    """
    if not ids:
        return []
    query = select(PART).order_by(PART.c.name, PART.c.kind)
    with lake.catalog.read() as connection:
        names = _live_parts(connection, ids)
        ended = PART.c.end_snapshot.is_not(None)
        rows = connection.execute(
            query.where(PART.c.name.in_(names) & ~ended if live else PART.c.name.in_(names) | ended)
        ).all()
    parts = [list(files) for _, files in groupby(rows, lambda row: str(row.name))]
    return [files for files in parts if _has(lake, files, ids)]


def _live_parts(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Parts with these trajectories or with facts about them."""
    names: set[str] = set()
    for start in range(0, len(ids), LOOKUP):
        some = ids[start : start + LOOKUP]
        names.update(connection.scalars(select(TRAJECTORY.c.part).where(TRAJECTORY.c.trajectory_id.in_(some))))
        about = or_(
            FACT.c.key.in_(some),
            *(FACT.c.key.startswith(f"{trajectory_id}/", autoescape=True) for trajectory_id in some),
        )
        names.update(connection.scalars(select(FACT.c.part).where(about).distinct()))
    return names


def _has(lake: Lake, files: Sequence[Part], ids: Sequence[str]) -> bool:
    try:
        return any(read_rows(lake.source(file.name, file.kind), ids, ["trajectory_id"]).num_rows for file in files)
    except LakeError:
        if overtaken(lake, files):
            return True  # for the caller to look again
        raise


def _written_without(lake: Lake, name: str, sources: Sequence[Part], ids: Sequence[str]) -> dict[str, Written]:
    """Copies of a part's files, under another name, that lack these trajectories; none if it was overtaken."""
    gone = pa.array(ids, pa.string())
    try:
        return {
            source.kind: lake.write(
                name,
                source.kind,
                (
                    table.filter(pc.invert(pc.is_in(table["trajectory_id"], value_set=gone)))
                    for table in rows(lake, [source])
                ),
            )
            for source in sources
        }
    except LakeError:
        lake.discard(name, [source.kind for source in sources])
        if overtaken(lake, sources):
            return {}
        raise


def _rewrite(lake: Lake, sources: Sequence[Part], ids: Sequence[str]) -> None:
    """Put a part without these trajectories in the place of one that has them, under the same snapshots."""
    name, old = uuid.uuid4().hex, sources[0].name
    files = _written_without(lake, name, sources, ids)
    with lake.catalog.write() as connection:
        now = connection.execute(select(PART).where(PART.c.name == old).order_by(PART.c.kind)).all()
        if list(now) != list(sources):
            lake.discard(name, files)  # merged meanwhile; the caller looks again
            return
        connection.execute(delete(PART).where(PART.c.name == old))
        connection.execute(
            insert(PART),
            [
                {
                    **part_row(name, source.kind, files[source.kind], source.begin_snapshot),
                    "end_snapshot": source.end_snapshot,
                }
                for source in sources
            ],
        )
        discard_later(connection, [file_name(old, source.kind) for source in sources])
        for ledger in (TRAJECTORY, FACT):
            connection.execute(update(ledger).where(ledger.c.part == old).values(part=name))


def _leave_out(lake: Lake, sources: Sequence[Part], ids: Sequence[str]) -> None:
    """End a live part and begin one without these trajectories, at a new snapshot."""
    name, old = uuid.uuid4().hex, sources[0].name
    files = _written_without(lake, name, sources, ids)
    kept = {kind: file for kind, file in files.items() if file.rows}
    with lake.catalog.write() as connection:
        mine = (PART.c.name == old) & PART.c.end_snapshot.is_(None)
        now = connection.execute(select(PART).where(mine).order_by(PART.c.kind)).all()
        if list(now) != list(sources):
            lake.discard(name, files)  # merged meanwhile; the caller looks again
            return
        snapshot = new_snapshot(connection, f"retire {len(ids)} trajectories")
        connection.execute(update(PART).where(mine).values(end_snapshot=snapshot))
        if kept:
            connection.execute(insert(PART), [part_row(name, *file, snapshot) for file in kept.items()])
        staying = (TRAJECTORY.c.part == old) & TRAJECTORY.c.trajectory_id.not_in(ids)
        connection.execute(update(TRAJECTORY).where(staying).values(part=name))
        connection.execute(update(FACT).where(FACT.c.part == old).values(part=name))
    lake.discard(name, files.keys() - kept.keys())
