"""Reading with SQL: one locked DuckDB connection over one snapshot of a lake."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.files import writing
from flywheel.datasets.lake.storage import Storage
from flywheel.datasets.lake.views import PARQUET_KINDS, VIEWS
from flywheel.errors import LakeError, QueryError


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one statement may cost. Memory as DuckDB writes it: `4GB`, `70%`."""

    seconds: float = 300.0
    memory: str = "80%"


Files = Mapping[str, Mapping[int, Sequence[str]]]
"""Names or addresses of Parquet files by kind and schema version."""
MARK = "flywheel_views"
STORAGE = "v1.0.0"
"""DuckDB's storage version of exported files, so that older releases can read them."""


def open_views(files: Files, tables: Mapping[str, pa.Table], filesystem: Any) -> duckdb.DuckDBPyConnection:
    """A connection with the documented views over Parquet files by kind and catalog tables by view, locked.

    From then on it reads no other file, changes no setting, loads no extension and spills nothing to disk.
    """
    connection = duckdb.connect(
        config={"autoinstall_known_extensions": False, "autoload_known_extensions": False, "temp_directory": ""}
    )
    if filesystem is not None:
        connection.register_filesystem(filesystem)
    for kind in PARQUET_KINDS:
        connection.register(f"empty_{kind}", ARROW_SCHEMAS[kind].empty_table())
    for view, table in tables.items():
        connection.register(f"raw_{view}", table)
    _define(connection, files, "temp view")
    allowed = literal([path for versions in files.values() for paths in versions.values() for path in paths])
    connection.execute(f"set allowed_paths = {allowed}")
    connection.execute("set enable_external_access = false")
    connection.execute("set python_enable_replacements = false")
    return connection


def write_views(file: Path, files: Files, tables: Mapping[str, pa.Table], storage: Storage) -> None:
    """A DuckDB database of the views, with their documentation as comments; it replaces one that we wrote before.

    The catalog's tables are copied into it, the Parquet files stay where they are.
    """
    if file.exists() and not _is_ours(file):
        raise LakeError(f"{file} is not a file of views; name a new one")
    draft = file.with_name(f"{file.name}.part")
    draft.unlink(missing_ok=True)
    with writing(file), duckdb.connect(str(draft), config={"storage_compatibility_version": STORAGE}) as connection:
        if storage.filesystem is not None:
            connection.register_filesystem(storage.filesystem)
        copies = {f"empty_{kind}": ARROW_SCHEMAS[kind].empty_table() for kind in PARQUET_KINDS}
        for name, table in (copies | {f"raw_{view}": table for view, table in tables.items()}).items():
            connection.register("given", table)
            connection.execute(f"create table {name} as from given")
            connection.unregister("given")
        lasting = {
            kind: {version: [storage.address(name) for name in names] for version, names in versions.items()}
            for kind, versions in files.items()
        }
        _define(connection, lasting, "view")
        connection.execute(f"create table {MARK} as select now() as written_at")
        for name, face in VIEWS.items():
            connection.execute(f"comment on view {name} is {quoted(f'A row is {face.row}.')}")
            for column, holds in face.columns.items():
                connection.execute(f'comment on column {name}."{column}" is {quoted(holds)}')
    draft.replace(file)


def _define(connection: duckdb.DuckDBPyConnection, files: Files, sort: str) -> None:
    """The views, over relations `empty_*` and catalog tables `raw_*` that are there already.

    Files of one kind and schema version have the same columns, so that binding a view opens one of them.
    """
    for kind in PARQUET_KINDS:
        source = "".join(
            f" union all by name select * from read_parquet({literal(paths)})" for paths in files[kind].values()
        )
        try:
            connection.execute(f"create {sort} raw_{kind} as select * from empty_{kind}{source}")
        except duckdb.Error as error:
            raise LakeError(f"broken Parquet file: {one_line(error)}; see: flywheel lake check") from error
    for name, face in VIEWS.items():
        connection.execute(f"create {sort} {name} as {face.statement}")


def _is_ours(file: Path) -> bool:
    try:
        with duckdb.connect(str(file), read_only=True) as connection:
            row = connection.execute(f"select 1 from duckdb_tables() where table_name = '{MARK}'").fetchone()
    except duckdb.Error:
        return False
    return row is not None


def run_query(connection: duckdb.DuckDBPyConnection, statement: str, limits: QueryLimits) -> pa.Table:
    """The result of one reading statement. Raises `QueryError` in one line."""
    with limited(connection, statement, limits), translated(limits):
        result: pa.Table = connection.sql(statement).to_arrow_table()
    return result


@contextmanager
def limited(connection: duckdb.DuckDBPyConnection, statement: str, limits: QueryLimits) -> Iterator[None]:
    """Lock a connection to one reading statement within its limits; DuckDB is interrupted when its time is over."""
    with translated(limits):
        check_statement(statement)
        connection.execute(f"set memory_limit = {quoted(limits.memory)}")
        connection.execute("set lock_configuration = true")
    alarm = threading.Timer(limits.seconds, connection.interrupt)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def check_statement(statement: str) -> None:
    """Raise `QueryError` for what is not one reading statement."""
    try:
        parsed = duckdb.extract_statements(statement)
        reads = len(parsed) == 1 and parsed[0].type == duckdb.StatementType.SELECT
    except ValueError:  # a type of statement that DuckDB's Python side has no name for
        reads = False
    if not reads:
        raise QueryError("only a single reading statement is allowed: select, from, with, describe, show")


def check_condition(condition: str) -> None:
    """Raise `QueryError` for what is more, or less, than one SQL expression."""
    try:
        duckdb.SQLExpression(condition)
    except duckdb.Error as error:
        raise QueryError(f"not a condition: {one_line(error)}") from error


@contextmanager
def translated(limits: QueryLimits) -> Iterator[None]:
    """Raises DuckDB's errors as `QueryError`, in one line."""
    try:
        yield
    except RuntimeError as error:
        if "interrupted" in str(error):  # Ctrl-C, as DuckDB tells it
            raise KeyboardInterrupt from error
        raise
    except duckdb.InterruptException as error:
        raise QueryError(f"the query took longer than {limits.seconds:g} s; narrow it or raise the limit") from error
    except duckdb.OutOfMemoryException as error:
        raise QueryError(f"the query needs more memory than {limits.memory}; narrow it or raise the limit") from error
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """DuckDB's message without the statement that it quotes."""
    return " ".join(str(error).split("\n\n")[0].split())


def literal(paths: Sequence[str]) -> str:
    """A DuckDB list of strings."""
    return f"[{', '.join(map(quoted, paths))}]"


def quoted(text: str) -> str:
    """A DuckDB string."""
    return "'" + text.replace("'", "''") + "'"
