"""The contents of a snapshot: its files, and the catalog's tables at that time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, func, or_, select

from flywheel.datasets.lake.catalog import ITERATION, LINEAGE, METADATA, PART, POLICY, SNAPSHOT
from flywheel.datasets.lake.storage import Storage
from flywheel.datasets.lake.views import PARQUET_KINDS
from flywheel.datasets.lake.views_catalog import CATALOG_KINDS
from flywheel.errors import LakeError
from flywheel.trajectory import SCHEMA_VERSION


def part_rows(connection: Connection, at: int | None, lake: str) -> list[Any]:
    """What the catalog records of every file that a snapshot (None: the newest) reads."""
    check_snapshot(connection, at, lake)
    open_ended = PART.c.end_snapshot.is_(None)
    query = select(PART).order_by(PART.c.begin_snapshot, PART.c.name)
    if at is None:
        query = query.where(open_ended)
    else:
        query = query.where(PART.c.begin_snapshot <= at, or_(open_ended, PART.c.end_snapshot > at))
    return list(connection.execute(query).all())


def files_of(connection: Connection, at: int | None, storage: Storage, lake: str) -> dict[str, dict[int, list[str]]]:
    """Names by kind and schema version that a snapshot (None: the newest) reads, checked for presence and size."""
    rows = part_rows(connection, at, lake)
    present = storage.listing() if rows else {}
    files: dict[str, dict[int, list[str]]] = {kind: {} for kind in PARQUET_KINDS}
    for row in rows:
        if row.schema_version > SCHEMA_VERSION:
            raise LakeError(
                f"{lake} holds schema {row.schema_version}, this Flywheel knows {SCHEMA_VERSION}; upgrade Flywheel"
            )
        name = f"{row.name}.{row.kind}.parquet"
        size = present[name].bytes if name in present else -1
        if size != row.bytes:
            flaw = "is missing" if size < 0 else f"has {size} bytes instead of {row.bytes}"
            raise LakeError(f"broken Parquet file: {storage.address(name)} {flaw}; see: flywheel lake check")
        files[row.kind].setdefault(row.schema_version, []).append(name)
    return files


def catalog_tables(connection: Connection, at: int | None) -> dict[str, pa.Table]:
    """The catalog's tables by view, as they stood before the snapshot after `at` began, or now."""
    until = None
    if at is not None:
        later = select(SNAPSHOT.c.created_at).where(SNAPSHOT.c.id > at).order_by(SNAPSHOT.c.id)
        until = connection.scalar(later.limit(1))
    return {view: _table(connection, name, until) for view, name in CATALOG_KINDS.items()}


class SnapshotGoneError(LakeError):
    """A snapshot that garbage collection has taken."""


def check_snapshot(connection: Connection, at: int | None, lake: str) -> None:
    """Raise `LakeError` for a snapshot that is not there, or no longer."""
    if at and not connection.scalar(select(SNAPSHOT.c.id).where(SNAPSHOT.c.id == at)):
        newest = connection.scalar(select(func.max(SNAPSHOT.c.id))) or 0
        if at < newest:
            raise SnapshotGoneError(f"no snapshot {at} in {lake}; its files have been collected as garbage")
        raise LakeError(f"no snapshot {at} in {lake}; the newest is {newest}")


def _table(connection: Connection, name: str, until: float | None) -> pa.Table:
    table = METADATA.tables[name]
    query = select(table)
    if until is not None and table is LINEAGE:
        query = query.join(POLICY, POLICY.c.policy_id == LINEAGE.c.policy_id).where(POLICY.c.created_at < until)
    elif until is not None:
        query = query.where((table.c.started_at if table is ITERATION else table.c.created_at) < until)
    rows = connection.execute(query).all()
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(table.columns)
    schema = pa.schema([(column.name, _ARROW[column.type.python_type]) for column in table.columns])
    return pa.table(
        [pa.array(values, field.type) for field, values in zip(schema, columns, strict=True)], schema=schema
    )


_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}
