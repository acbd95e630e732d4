"""Upkeep: compaction and garbage collection. Each is one short transaction after its files are written.

Old files are never deleted in the same breath: they are listed as garbage in that transaction and deleted
afterwards, so that a killed upkeep leaves work to be finished and not a lake to be repaired.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Row, delete, insert, select, update

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.catalog import DATASET_VERSION, FACT, GARBAGE, PART, SNAPSHOT, TRAJECTORY, new_snapshot
from flywheel.datasets.lake.files import row_groups
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.part_files import file_name, part_row
from flywheel.errors import LakeError

SMALL = 32 << 20
"""Files below this size are merged."""
TARGET = 64 << 20
GRACE = 3600.0
"""Seconds that a file outlives the last snapshot that reads it: queries may be at it."""
Part = Row[Any]


def compact(lake: Lake, *, least: int = 8) -> int:
    """Merge small live parts into larger ones. How many parts went into others.

    Earlier snapshots go on reading the old files until `collect_garbage` finds that no dataset version needs them.
    Memory holds one row group at a time.
    """
    merged = 0
    for group in _groups(lake, least):
        merged += _merge(lake, group)
    return merged


def _groups(lake: Lake, least: int) -> list[list[str]]:
    """Names of small parts with the same kinds of files, in commit order, cut at the target size."""
    by_kinds: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    with lake.catalog.read() as connection:
        rows = connection.execute(
            select(PART).where(PART.c.end_snapshot.is_(None)).order_by(PART.c.begin_snapshot, PART.c.kind)
        ).all()
    kinds: dict[str, list[Part]] = {}
    for row in rows:
        kinds.setdefault(row.name, []).append(row)
    for name, same in kinds.items():
        size = sum(file.bytes for file in same)
        if size < SMALL:
            by_kinds.setdefault(tuple(file.kind for file in same), []).append((name, size))
    groups = []
    for names in by_kinds.values():
        group, size = [], 0
        for name, part_bytes in names:
            group.append(name)
            size += part_bytes
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
    files = {}
    try:
        for kind in kinds:
            same = [source for source in sources if source.kind == kind]
            files[kind] = lake.write(target, kind, rows(lake, same))
    except LakeError:
        lake.discard(target, kinds)
        if overtaken(lake, sources):
            return 0
        raise
    with lake.catalog.write() as connection:
        if _identity(_live(connection, names)) != _identity(sources):
            lake.discard(target, kinds)  # a purge was faster; the next compaction takes what it left
            return 0
        snapshot = new_snapshot(connection, f"compact {len(names)} parts")
        connection.execute(
            update(PART).where(PART.c.name.in_(names), PART.c.end_snapshot.is_(None)).values(end_snapshot=snapshot)
        )
        connection.execute(insert(PART), [part_row(target, kind, files[kind], snapshot) for kind in kinds])
        for ledger in (TRAJECTORY, FACT):
            connection.execute(update(ledger).where(ledger.c.part.in_(names)).values(part=target))
    return len(names)


def overtaken(lake: Lake, sources: Sequence[Part]) -> bool:
    """Whether another merge or a purge has changed these parts since they were listed: a file of theirs that cannot
    be read is then no damage, it was deleted meanwhile."""
    names = {source.name for source in sources}
    with lake.catalog.read() as connection:
        now = connection.execute(select(PART).where(PART.c.name.in_(names))).all()
    return not set(sources) <= set(now)


def rows(lake: Lake, sources: Sequence[Part]) -> Iterator[pa.Table]:
    """The rows of files of one kind, a row group at a time, with the columns that the contract has now."""
    for source in sources:
        schema = ARROW_SCHEMAS[source.kind]
        for table in row_groups(lake.source(source.name, source.kind)):
            yield pa.concat_tables([schema.empty_table(), table], promote_options="default").select(schema.names)


def collect_garbage(lake: Lake, *, keep_snapshots: int = 100, grace: float = GRACE) -> int:
    """Delete files that neither a dataset version nor one of the newest snapshots reads. How many.

    Snapshots that lose a file are forgotten with it: they are refused from then on, never read in part.
    Files that the catalog has never heard of are writers' work in progress, or were left by killed ones: they are
    deleted when they are older than the grace.
    """
    newest = lake.snapshot()
    with lake.catalog.write() as connection:
        versioned = set(connection.scalars(select(DATASET_VERSION.c.snapshot)))
        oldest = newest - keep_snapshots
        ended = connection.execute(select(PART).where(PART.c.end_snapshot.is_not(None))).all()
        for row in ended:
            if row.end_snapshot <= oldest and not any(
                row.begin_snapshot <= snapshot < row.end_snapshot for snapshot in versioned
            ):
                connection.execute(delete(PART).where(PART.c.name == row.name, PART.c.kind == row.kind))
                lost = (SNAPSHOT.c.id >= row.begin_snapshot) & (SNAPSHOT.c.id < row.end_snapshot)
                connection.execute(delete(SNAPSHOT).where(lost))
                discard_later(connection, [file_name(row.name, row.kind)])
    return delete_garbage(lake, grace) + _delete_unknown(lake, grace)


def delete_garbage(lake: Lake, grace: float) -> int:
    """Delete files that fell out of use longer ago than the grace. How many."""
    with lake.catalog.read() as connection:
        due = list(connection.scalars(select(GARBAGE.c.file).where(GARBAGE.c.since <= time.time() - grace)))
    lake.storage.delete(due)
    with lake.catalog.write() as connection:
        connection.execute(delete(GARBAGE).where(GARBAGE.c.file.in_(due)))
    return len(due)


def discard_later(connection: Connection, files: Sequence[str]) -> None:
    """List files as garbage, in the transaction that takes them out of use."""
    now = time.time()
    known = set(connection.scalars(select(GARBAGE.c.file).where(GARBAGE.c.file.in_(files))))
    rows = [{"file": file, "since": now} for file in files if file not in known]
    if rows:
        connection.execute(insert(GARBAGE), rows)


def unknown_files(lake: Lake) -> dict[str, float]:
    """Files of the lake that the catalog does not list: name → when they were last changed."""
    present = lake.storage.listing()
    with lake.catalog.read() as connection:
        known = {file_name(row.name, row.kind) for row in connection.execute(select(PART))}
        known |= set(connection.scalars(select(GARBAGE.c.file)))
    return {name: entry.modified for name, entry in sorted(present.items()) if name not in known}


def _delete_unknown(lake: Lake, grace: float) -> int:
    """Files that no commit took, here and in this machine's staging."""
    before = time.time() - grace
    due = [name for name, modified in unknown_files(lake).items() if modified <= before]
    lake.storage.delete(due)
    staged = [path for path in lake.staging.iterdir() if path.stat().st_mtime <= before]
    for path in staged:
        path.unlink(missing_ok=True)
    return len(due) + len(staged)


def _live(connection: Connection, names: Sequence[str]) -> list[Part]:
    query = select(PART).where(PART.c.name.in_(names), PART.c.end_snapshot.is_(None))
    return list(connection.execute(query.order_by(PART.c.begin_snapshot, PART.c.name, PART.c.kind)))


def _identity(rows: Sequence[Part]) -> list[tuple[str, str, str]]:
    return [(row.name, row.kind, row.sha256) for row in rows]
