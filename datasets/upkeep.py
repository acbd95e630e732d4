"""Upkeep: compaction, purge, garbage collection. Each is one short transaction after its files are written.

Old files are never deleted in the same breath: they are listed as garbage in that transaction and unlinked
afterwards, so that a killed upkeep leaves work to be finished and not a lake to be repaired.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Connection, Row, delete, insert, select, update

from flywheel.datasets.catalog import FACT, GARBAGE, PIN, SEGMENT, SNAPSHOT, TRAJECTORY, new_snapshot
from flywheel.datasets.files import sync_directory
from flywheel.datasets.lake import Lake, segment_row
from flywheel.datasets.lineage import revoke
from flywheel.errors import LakeError

SMALL = 64 << 20
"""Files below this size are merged."""
TARGET = 128 << 20
GRACE = 3600.0
"""Seconds that a file outlives the last snapshot that reads it: queries may be at it."""
Segment = Row[Any]


def compact(lake: Lake, *, least: int = 8) -> int:
    """Merge small live segments into larger ones. How many segments went into others.

    Earlier snapshots go on reading the old files until `collect_garbage` finds that no pin needs them.
    """
    merged = 0
    for group in _groups(lake, least):
        merged += _merge(lake, group)
    return merged


def _groups(lake: Lake, least: int) -> list[list[str]]:
    """Names of small segments with the same kinds of files, in commit order, cut at the target size."""
    by_kinds: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    with lake.catalog.read() as connection:
        rows = connection.execute(
            select(SEGMENT).where(SEGMENT.c.end_snapshot.is_(None)).order_by(SEGMENT.c.begin_snapshot, SEGMENT.c.kind)
        ).all()
    kinds: dict[str, list[Segment]] = {}
    for row in rows:
        kinds.setdefault(row.name, []).append(row)
    for name, parts in kinds.items():
        size = sum(part.bytes for part in parts)
        if size < SMALL:
            by_kinds.setdefault(tuple(part.kind for part in parts), []).append((name, size))
    groups = []
    for names in by_kinds.values():
        group, size = [], 0
        for name, own in names:
            group.append(name)
            size += own
            if size >= TARGET:
                groups.append(group)
                group, size = [], 0
        groups.append(group)
    return [group for group in groups if len(group) >= least]


def _merge(lake: Lake, names: Sequence[str]) -> int:
    with lake.catalog.read() as connection:
        sources = _live(connection, names)
    target = uuid.uuid4().hex
    kinds = sorted({source.kind for source in sources})
    files = {
        kind: lake.write(target, kind, _concatenated(lake, [one for one in sources if one.kind == kind]))
        for kind in kinds
    }
    with lake.catalog.write() as connection:
        if _identity(_live(connection, names)) != _identity(sources):
            lake.discard(target, kinds)  # a purge was faster; the next compaction takes what it left
            return 0
        snapshot = new_snapshot(connection, f"compact {len(names)} segments")
        connection.execute(
            update(SEGMENT)
            .where(SEGMENT.c.name.in_(names), SEGMENT.c.end_snapshot.is_(None))
            .values(end_snapshot=snapshot)
        )
        connection.execute(insert(SEGMENT), [segment_row(target, kind, files[kind], snapshot) for kind in kinds])
        for ledger in (TRAJECTORY, FACT):
            connection.execute(update(ledger).where(ledger.c.segment.in_(names)).values(segment=target))
    return len(names)


def purge(lake: Lake, trajectory_ids: Sequence[str], reason: str) -> int:
    """Remove trajectories from every file, history included. How many were there.

    Pins that held one are flagged. The ids stay in the catalog, so that a late retry cannot bring them back.
    """
    known = sorted(lake.known_ids(trajectory_ids))
    if known:
        revoke(lake, known, reason)
    while found := _holding(lake, known):
        _rewrite(lake, found, known)
    _unlink_garbage(lake, grace=0.0)
    return len(known)


def _holding(lake: Lake, ids: Sequence[str]) -> list[Segment]:
    """The files of one segment, of any snapshot, that still has a row of these trajectories; empty if none has."""
    with lake.catalog.read() as connection:
        rows = connection.execute(select(SEGMENT).order_by(SEGMENT.c.kind)).all()
    wanted = pc.field("trajectory_id").isin(list(ids))
    for row in rows:
        path = lake.path(row.name, row.kind)
        if pq.read_table(path, columns=["trajectory_id"], filters=wanted, partitioning=None).num_rows:
            return [other for other in rows if other.name == row.name]
    return []


def _rewrite(lake: Lake, sources: Sequence[Segment], ids: Sequence[str]) -> None:
    """Put a segment without these trajectories in the place of one that has them, under the same snapshots."""
    name, old = uuid.uuid4().hex, sources[0].name
    gone = pa.array(ids, pa.string())
    files = {}
    for one in sources:
        table = pq.read_table(lake.path(old, one.kind), partitioning=None)
        kept = table.filter(pc.invert(pc.is_in(table["trajectory_id"], value_set=gone)))
        files[one.kind] = lake.write(name, one.kind, kept)
    with lake.catalog.write() as connection:
        now = connection.execute(select(SEGMENT).where(SEGMENT.c.name == old).order_by(SEGMENT.c.kind)).all()
        if list(now) != list(sources):
            lake.discard(name, files)  # merged meanwhile; the caller looks again
            return
        connection.execute(delete(SEGMENT).where(SEGMENT.c.name == old))
        connection.execute(
            insert(SEGMENT),
            [
                {**segment_row(name, one.kind, files[one.kind], one.begin_snapshot), "end_snapshot": one.end_snapshot}
                for one in sources
            ],
        )
        _discarded(connection, [lake.path(old, one.kind).name for one in sources])
        for ledger in (TRAJECTORY, FACT):
            connection.execute(update(ledger).where(ledger.c.segment == old).values(segment=name))


def collect_garbage(lake: Lake, *, keep_snapshots: int = 100, grace: float = GRACE) -> int:
    """Delete files that neither a pin nor one of the newest snapshots reads. How many.

    Snapshots that lose a file are forgotten with it: they are refused from then on, never read in part.
    Files that the catalog has never heard of are writers' work in progress, or were left by killed ones: they are
    deleted when they are older than the grace.
    """
    newest = lake.snapshot()
    with lake.catalog.write() as connection:
        pinned = set(connection.scalars(select(PIN.c.snapshot)))
        oldest = newest - keep_snapshots
        ended = connection.execute(select(SEGMENT).where(SEGMENT.c.end_snapshot.is_not(None))).all()
        for row in ended:
            if row.end_snapshot <= oldest and not any(row.begin_snapshot <= one < row.end_snapshot for one in pinned):
                connection.execute(delete(SEGMENT).where(SEGMENT.c.name == row.name, SEGMENT.c.kind == row.kind))
                lost = (SNAPSHOT.c.id >= row.begin_snapshot) & (SNAPSHOT.c.id < row.end_snapshot)
                connection.execute(delete(SNAPSHOT).where(lost))
                _discarded(connection, [lake.path(row.name, row.kind).name])
    return _unlink_garbage(lake, grace) + _unlink_unknown(lake, grace)


def _unlink_garbage(lake: Lake, grace: float) -> int:
    with lake.catalog.read() as connection:
        due = list(connection.scalars(select(GARBAGE.c.file).where(GARBAGE.c.since <= time.time() - grace)))
    for name in due:
        (lake.segments / name).unlink(missing_ok=True)
    sync_directory(lake.segments)
    with lake.catalog.write() as connection:
        connection.execute(delete(GARBAGE).where(GARBAGE.c.file.in_(due)))
    return len(due)


def _unlink_unknown(lake: Lake, grace: float) -> int:
    due = [path for path in unknown_files(lake) if path.stat().st_mtime <= time.time() - grace]
    for path in due:
        path.unlink(missing_ok=True)
    return len(due)


def unknown_files(lake: Lake) -> list[Any]:
    """Files in the lake's folders that the catalog does not list."""
    with lake.catalog.read() as connection:
        known = {lake.path(row.name, row.kind).name for row in connection.execute(select(SEGMENT))}
        known |= set(connection.scalars(select(GARBAGE.c.file)))
    present = [path for path in lake.segments.iterdir() if path.name not in known]
    return sorted([*present, *lake.staging.iterdir()])


def _live(connection: Connection, names: Sequence[str]) -> list[Segment]:
    query = select(SEGMENT).where(SEGMENT.c.name.in_(names), SEGMENT.c.end_snapshot.is_(None))
    return list(connection.execute(query.order_by(SEGMENT.c.begin_snapshot, SEGMENT.c.name, SEGMENT.c.kind)))


def _identity(rows: Sequence[Segment]) -> list[tuple[str, str, str]]:
    return [(row.name, row.kind, row.sha256) for row in rows]


def _concatenated(lake: Lake, sources: Sequence[Segment]) -> pa.Table:
    """Rows of several files with the union of their columns."""
    try:
        tables = [pq.read_table(lake.path(one.name, one.kind), partitioning=None) for one in sources]
    except (OSError, pa.ArrowInvalid) as error:
        raise LakeError(f"broken Parquet file: {str(error).splitlines()[0]}; see: flywheel lake check") from error
    return pa.concat_tables(tables, promote_options="default")


def _discarded(connection: Connection, files: Sequence[str]) -> None:
    now = time.time()
    known = set(connection.scalars(select(GARBAGE.c.file).where(GARBAGE.c.file.in_(files))))
    rows = [{"file": file, "since": now} for file in files if file not in known]
    if rows:
        connection.execute(insert(GARBAGE), rows)
