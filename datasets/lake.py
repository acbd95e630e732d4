"""The lake: immutable Parquet segments and a catalog; trajectories go in exactly once, SQL comes out.

A commit writes its files first and then takes one short transaction, whose primary key on trajectory ids decides
what is new. Killed at any moment, the lake holds a trajectory with all its steps or not at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, Table, func, insert, or_, select

from flywheel.arrow import trajectories_from_arrow, trajectories_to_arrow
from flywheel.datasets.catalog import (
    FACT,
    ITERATION,
    LINEAGE,
    METADATA,
    POLICY,
    SEGMENT,
    SNAPSHOT,
    TRAJECTORY,
    Catalog,
    new_snapshot,
)
from flywheel.datasets.files import Written, read_rows, write_parquet
from flywheel.datasets.reading import QueryLimits, open_views, run_query
from flywheel.datasets.views import CATALOG_KINDS, PARQUET_KINDS
from flywheel.errors import LakeError
from flywheel.trajectory import SCHEMA_VERSION, Trajectory

CATALOG_FILE = "catalog.sqlite"


class Lake:
    """One data directory. Safe for several processes at once on one machine."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        if not create and not (root / CATALOG_FILE).is_file():
            raise LakeError(f"no lake at {root}; run `flywheel run` first, or point data_dir at an existing one")
        self.segments = root / "segments"
        self.staging = root / "staging"
        for folder in (self.segments, self.staging):
            folder.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog(root / CATALOG_FILE)

    def close(self) -> None:
        self.catalog.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, trajectories: Sequence[Trajectory], message: str) -> int:
        """Commit trajectories with all their steps; ids already there are left out. How many were new."""
        table, steps = trajectories_to_arrow(trajectories)
        return self._commit(
            TRAJECTORY,
            {"trajectories": table, "steps": steps},
            [trajectory.trajectory_id for trajectory in trajectories],
            lambda ids, name, snapshot: [
                {"trajectory_id": trajectory_id, "segment": name, "snapshot": snapshot} for trajectory_id in ids
            ],
            message,
        )

    def append_facts(self, kind: str, table: pa.Table, message: str, *, key: Sequence[str] = ()) -> int:
        """Commit late facts (verdicts, routes, segments) about trajectories, once per key.

        The key of a fact is its trajectory id with the columns named in `key`; rows that share a key are one fact.
        """
        columns = [table["trajectory_id"].to_pylist(), *(table[column].to_pylist() for column in key)]
        keys = ["/".join(map(str, parts)) for parts in zip(*columns, strict=True)]
        return self._commit(
            FACT,
            {kind: table},
            keys,
            lambda new, name, snapshot: [
                {"kind": kind, "key": fact, "segment": name, "snapshot": snapshot} for fact in new
            ],
            message,
        )

    def _commit(
        self,
        ledger: Table,
        tables: dict[str, pa.Table],
        keys: Sequence[str],
        entries: Callable[[Iterable[str], str, int], list[dict[str, Any]]],
        message: str,
    ) -> int:
        kind = next(iter(tables))
        while True:
            with self.catalog.read() as connection:
                known = _known(connection, ledger, kind, keys)
            tables, keys = _without(tables, keys, known)
            unique = list(dict.fromkeys(keys))
            if not unique:
                return 0
            name = uuid.uuid4().hex  # never another writer's: two may bring the same ids with other timings
            files = {part: self.write(name, part, table) for part, table in tables.items()}
            with self.catalog.write() as connection:
                if _known(connection, ledger, kind, unique):
                    self.discard(name, files)
                    continue
                snapshot = new_snapshot(connection, message)
                connection.execute(insert(SEGMENT), [segment_row(name, *file, snapshot) for file in files.items()])
                connection.execute(insert(ledger), entries(unique, name, snapshot))
                return len(unique)

    def write(self, name: str, kind: str, table: pa.Table) -> Written:
        """Write one file of a segment that no snapshot reads yet."""
        return write_parquet(table, self.path(name, kind), self.staging)

    def discard(self, name: str, kinds: Iterable[str]) -> None:
        """Remove the files of a segment that lost the race for its commit."""
        for kind in kinds:
            self.path(name, kind).unlink()

    # -- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> int:
        """Number of the newest commit; 0 for an empty lake."""
        with self.catalog.read() as connection:
            return connection.scalar(select(func.max(SNAPSHOT.c.id))) or 0

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these trajectories the lake holds."""
        with self.catalog.read() as connection:
            return _known(connection, TRAJECTORY, "trajectories", ids)

    def known_facts(self, kind: str, keys: Sequence[str]) -> set[str]:
        """Which facts of a kind are recorded; see `append_facts` for the form of a key."""
        with self.catalog.read() as connection:
            return _known(connection, FACT, kind, keys)

    def sql(self, statement: str, *, at: int | None = None, limits: QueryLimits | None = None) -> pa.Table:
        """Run one reading statement over the views, as of a snapshot or now. It cannot write, nor read other files."""
        connection = self.connect(at)
        try:
            return run_query(connection, statement, limits or QueryLimits())
        finally:
            connection.close()

    def segments_of(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Segment → which of these trajectories it holds."""
        found: dict[str, list[str]] = {}
        with self.catalog.read() as connection:
            for start in range(0, len(ids), 500):
                query = select(TRAJECTORY).where(TRAJECTORY.c.trajectory_id.in_(ids[start : start + 500]))
                for row in connection.execute(query):
                    found.setdefault(row.segment, []).append(row.trajectory_id)
        return found

    def trajectories(self, ids: Sequence[str]) -> list[Trajectory]:
        """Whole trajectories, in the order of the ids. Raises `LakeError` for one that is not there.

        The catalog knows their segments, so only the files that hold them are opened.
        """
        found: dict[str, Trajectory] = {}
        for name, inside in self.segments_of(ids).items():
            tables = [read_rows(self.path(name, kind), inside) for kind in ("trajectories", "steps")]
            found |= {trajectory.trajectory_id: trajectory for trajectory in trajectories_from_arrow(*tables)}
        if missing := [trajectory_id for trajectory_id in ids if trajectory_id not in found]:
            raise LakeError(
                f"no trajectory '{missing[0]}' in {self.root}; "
                'list some with: flywheel sql "select trajectory_id from trajectories limit 5"'
            )
        return [found[trajectory_id] for trajectory_id in ids]

    def connect(self, at: int | None = None) -> duckdb.DuckDBPyConnection:
        """A locked DuckDB connection with the views, as of a snapshot or now."""
        with self.catalog.read() as connection:
            until = _until(connection, at, self.root)
            files = self._files(connection, at)
            tables = {view: _catalog_table(connection, table, until) for view, table in CATALOG_KINDS.items()}
        return open_views(files, tables)

    def path(self, name: str, kind: str) -> Path:
        """The file of a segment."""
        return (self.segments / f"{name}.{kind}.parquet").absolute()

    def _files(self, connection: Connection, at: int | None) -> dict[str, list[Path]]:
        """Files by kind that a snapshot reads, each checked for presence and size."""
        open_ended = SEGMENT.c.end_snapshot.is_(None)
        query = select(SEGMENT).order_by(SEGMENT.c.begin_snapshot, SEGMENT.c.name)
        if at is None:
            query = query.where(open_ended)
        else:
            query = query.where(SEGMENT.c.begin_snapshot <= at, or_(open_ended, SEGMENT.c.end_snapshot > at))
        rows = connection.execute(query)
        files: dict[str, list[Path]] = {kind: [] for kind in PARQUET_KINDS}
        for row in rows:
            if row.schema_version > SCHEMA_VERSION:
                raise LakeError(
                    f"{self.root} holds schema {row.schema_version}, this Flywheel knows {SCHEMA_VERSION}; "
                    "upgrade Flywheel"
                )
            path = self.path(row.name, row.kind)
            size = path.stat().st_size if path.is_file() else -1
            if size != row.bytes:
                found = "is missing" if size < 0 else f"has {size} bytes instead of {row.bytes}"
                raise LakeError(f"broken Parquet file: {path} {found}; see: flywheel lake check")
            files[row.kind].append(path)
        return files


def _until(connection: Connection, at: int | None, root: Path) -> float | None:
    """When the snapshot after `at` began: what the catalog knew before that belongs to `at`."""
    if at is None:
        return None
    if at and not connection.scalar(select(SNAPSHOT.c.id).where(SNAPSHOT.c.id == at)):
        newest = connection.scalar(select(func.max(SNAPSHOT.c.id))) or 0
        problem = "its files have been collected as garbage" if at < newest else f"the newest is {newest}"
        raise LakeError(f"no snapshot {at} in {root}; {problem}")
    later = select(SNAPSHOT.c.created_at).where(SNAPSHOT.c.id > at).order_by(SNAPSHOT.c.id)
    return connection.scalar(later.limit(1))


def segment_row(name: str, kind: str, file: Written, snapshot: int) -> dict[str, Any]:
    """What the catalog records of a file that is read from a snapshot on."""
    return {
        "name": name,
        "kind": kind,
        "row_count": file.rows,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "schema_version": SCHEMA_VERSION,
        "begin_snapshot": snapshot,
    }


def _known(connection: Connection, ledger: Table, kind: str, keys: Sequence[str]) -> set[str]:
    column = ledger.c.trajectory_id if ledger is TRAJECTORY else ledger.c.key
    found: set[str] = set()
    for start in range(0, len(keys), 500):
        query = select(column).where(column.in_(keys[start : start + 500]))
        if ledger is FACT:
            query = query.where(ledger.c.kind == kind)
        found.update(connection.scalars(query))
    return found


def _without(
    tables: dict[str, pa.Table], keys: Sequence[str], known: set[str]
) -> tuple[dict[str, pa.Table], list[str]]:
    """Drop what is known already: whole trajectories, or single facts by their row."""
    if not known:
        return tables, list(keys)
    keep = pa.array([key not in known for key in keys])
    kind, *others = tables
    kept = {kind: tables[kind].filter(keep)}
    for other in others:
        ids = kept[kind]["trajectory_id"].combine_chunks()
        kept[other] = tables[other].filter(pc.is_in(tables[other]["trajectory_id"], value_set=ids))
    return kept, [key for key in keys if key not in known]


def _catalog_table(connection: Connection, name: str, until: float | None) -> pa.Table:
    """A catalog table as it stood before a time, or now."""
    table = METADATA.tables[name]
    query = select(table)
    if until is not None and table is LINEAGE:
        query = query.join(POLICY, POLICY.c.policy_id == LINEAGE.c.policy_id).where(POLICY.c.created_at < until)
    elif until is not None:
        query = query.where((table.c.started_at if table is ITERATION else table.c.created_at) < until)
    rows = [dict(row._mapping) for row in connection.execute(query)]
    schema = pa.schema([(column.name, _ARROW[column.type.python_type]) for column in table.columns])
    return pa.Table.from_pylist(rows, schema=schema)


_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}
