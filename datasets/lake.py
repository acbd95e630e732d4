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
from sqlalchemy import Connection, Table, insert, select

from flywheel.arrow import ARROW_SCHEMAS, trajectories_from_arrow, trajectories_to_arrow
from flywheel.datasets.catalog import FACT, METADATA, SEGMENT, TRAJECTORY, Catalog, new_snapshot
from flywheel.datasets.files import Written, write_parquet
from flywheel.datasets.views import CATALOG_KINDS, PARQUET_KINDS, VIEWS
from flywheel.errors import LakeError, QueryError
from flywheel.trajectory import SCHEMA_VERSION, Trajectory

CATALOG_FILE = "catalog.sqlite"


class Lake:
    """One data directory. Safe for several processes at once on one machine."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        if not create and not (root / CATALOG_FILE).is_file():
            raise LakeError(f"no lake at {root}; run `flywheel run` first, or point data_dir at an existing one")
        self._segments = root / "segments"
        self._staging = root / "staging"
        for folder in (self._segments, self._staging):
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
            files = {
                part: write_parquet(table, self._segments / f"{name}.{part}.parquet", self._staging)
                for part, table in tables.items()
            }
            with self.catalog.write() as connection:
                if _known(connection, ledger, kind, unique):
                    self._discard(name, files)
                    continue
                snapshot = new_snapshot(connection, message)
                connection.execute(insert(SEGMENT), [_segment_row(name, *file, snapshot) for file in files.items()])
                connection.execute(insert(ledger), entries(unique, name, snapshot))
                return len(unique)

    def _discard(self, name: str, parts: Iterable[str]) -> None:
        for part in parts:
            (self._segments / f"{name}.{part}.parquet").unlink()

    # -- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> int:
        """Number of the newest commit; 0 for an empty lake."""
        with self.catalog.read() as connection:
            newest = connection.execute(select(SEGMENT.c.begin_snapshot).order_by(SEGMENT.c.begin_snapshot.desc()))
            return newest.scalar() or 0

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these trajectories the lake holds."""
        with self.catalog.read() as connection:
            return _known(connection, TRAJECTORY, "trajectories", ids)

    def known_facts(self, kind: str, keys: Sequence[str]) -> set[str]:
        """Which facts of a kind are recorded; see `append_facts` for the form of a key."""
        with self.catalog.read() as connection:
            return _known(connection, FACT, kind, keys)

    def sql(self, statement: str) -> pa.Table:
        """Run one reading statement over the views. It cannot write, nor read any file outside the lake."""
        connection = self.connect()
        try:
            parsed = duckdb.extract_statements(statement)
            if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
                raise QueryError("only a single reading statement is allowed: select, from, with, describe, show")
            result: pa.Table = connection.sql(statement).to_arrow_table()
            return result
        except duckdb.Error as error:
            raise QueryError(_one_line(error)) from error
        finally:
            connection.close()

    def trajectories(self, ids: Sequence[str]) -> list[Trajectory]:
        """Whole trajectories, in the order of the ids. Raises `LakeError` for one that is not there."""
        connection = self.connect()
        try:
            wanted = pa.table({"trajectory_id": pa.array(list(ids), pa.string())})
            connection.register("wanted", wanted)
            tables = [
                connection.sql(f"select x.* from raw_{kind} x semi join wanted using (trajectory_id)").to_arrow_table()
                for kind in ("trajectories", "steps")
            ]
        finally:
            connection.close()
        found = {trajectory.trajectory_id: trajectory for trajectory in trajectories_from_arrow(*tables)}
        if missing := [trajectory_id for trajectory_id in ids if trajectory_id not in found]:
            raise LakeError(
                f"no trajectory '{missing[0]}' in {self.root}; "
                'list some with: flywheel sql "select trajectory_id from trajectories limit 5"'
            )
        return [found[trajectory_id] for trajectory_id in ids]

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the views, locked: no other files, no settings, no extensions."""
        files = self._files()
        connection = duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
        for kind in PARQUET_KINDS:
            connection.register(f"empty_{kind}", ARROW_SCHEMAS[kind].empty_table())
            paths = [str(path) for path in files[kind]]
            source = (
                f" union all by name select * from read_parquet({_literal(paths)}, union_by_name=true)" if paths else ""
            )
            try:
                connection.execute(f"create temp view raw_{kind} as select * from empty_{kind}{source}")
            except duckdb.Error as error:
                raise LakeError(f"broken Parquet file: {_one_line(error)}; restore it from a backup") from error
        with self.catalog.read() as catalog:
            for view, table in CATALOG_KINDS.items():
                connection.register(f"raw_{view}", _catalog_table(catalog, table))
        for name, (_, statement) in VIEWS.items():
            connection.execute(f"create temp view {name} as {statement}")
        allowed = _literal([str(path) for paths in files.values() for path in paths])
        connection.execute(f"set allowed_paths = {allowed}")
        connection.execute("set enable_external_access = false")
        connection.execute("set python_enable_replacements = false")
        connection.execute("set lock_configuration = true")
        return connection

    def _files(self) -> dict[str, list[Path]]:
        """Live files by kind, each checked for presence and size."""
        with self.catalog.read() as connection:
            rows = connection.execute(
                select(SEGMENT)
                .where(SEGMENT.c.end_snapshot.is_(None))
                .order_by(SEGMENT.c.begin_snapshot, SEGMENT.c.name)
            ).all()
        files: dict[str, list[Path]] = {kind: [] for kind in PARQUET_KINDS}
        for row in rows:
            if row.schema_version > SCHEMA_VERSION:
                raise LakeError(
                    f"{self.root} holds schema {row.schema_version}, this Flywheel knows {SCHEMA_VERSION}; "
                    "upgrade Flywheel"
                )
            path = (self._segments / f"{row.name}.{row.kind}.parquet").absolute()
            size = path.stat().st_size if path.is_file() else -1
            if size != row.bytes:
                found = "is missing" if size < 0 else f"has {size} bytes instead of {row.bytes}"
                raise LakeError(f"broken Parquet file: {path} {found}; restore it from a backup")
            files[row.kind].append(path)
        return files


def _one_line(error: duckdb.Error) -> str:
    """DuckDB's message without the statement that it quotes."""
    return " ".join(str(error).split("\n\n")[0].split())


def _segment_row(name: str, kind: str, file: Written, snapshot: int) -> dict[str, Any]:
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


def _catalog_table(connection: Connection, name: str) -> pa.Table:
    table = METADATA.tables[name]
    rows = [dict(row._mapping) for row in connection.execute(select(table))]
    schema = pa.schema([(column.name, _ARROW[column.type.python_type]) for column in table.columns])
    return pa.Table.from_pylist(rows, schema=schema)


_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}


def _literal(paths: Sequence[str]) -> str:
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return f"[{quoted}]"
