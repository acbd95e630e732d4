"""A query's result as it comes: Arrow batches whose values can all be printed, whatever their type."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from flywheel.datasets.lake.reading import QueryLimits, limited, one_line, translated
from flywheel.errors import QueryError

BATCH_ROWS = 4096
INTEGERS = frozenset({"tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint"})
LOSSLESS = INTEGERS | {"boolean", "float", "double", "varchar", "null"}
"""DuckDB's types that Python holds without loss; 128-bit integers, times, decimals and the rest are read as text."""
NESTED = frozenset({"list", "array", "struct", "map"})


@dataclass(frozen=True, slots=True)
class Result:
    """`columns` as the query names them, two of which may have one name; those in `int128_columns` hold an integer of
    128 bits as text."""

    columns: list[str]
    schema: pa.Schema
    int128_columns: frozenset[int]
    batches: Iterator[pa.RecordBatch]

    def rows(self) -> Iterator[list[Any]]:
        """Rows as Python values."""
        for batch in self.batches:
            columns = [column.to_pylist() for column in batch.columns]
            for place in self.int128_columns:
                columns[place] = [None if value is None else int(value) for value in columns[place]]
            yield from map(list, zip(*columns, strict=True))


@contextmanager
def streamed(
    connection: duckdb.DuckDBPyConnection, statement: str, limits: QueryLimits, *, printed: bool
) -> Iterator[Result]:
    """Run one reading statement; batches are computed as they are asked for, all of them within the limits.

    `printed`: what Python or JSON cannot hold is read as DuckDB's own text. Raises `QueryError` in one line.
    """
    deadline = time.monotonic() + limits.seconds
    with limited(connection, statement, limits):
        with translated(limits):
            relation = connection.sql(statement)
            columns, types = list(relation.columns), list(relation.types)
            if printed:
                relation = connection.sql(_as_printed(statement, types))
            reader = relation.to_arrow_reader(BATCH_ROWS)
        schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, columns, strict=True)])
        int128 = frozenset(place for place, kind in enumerate(types) if printed and kind.id in ("hugeint", "uhugeint"))
        yield Result(columns, schema, int128, _batches(reader, limits, deadline))


def _batches(reader: pa.RecordBatchReader, limits: QueryLimits, deadline: float) -> Iterator[pa.RecordBatch]:
    while True:
        with translated(limits):
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:  # DuckDB's errors come through Arrow
                raise _of_duckdb(error) from error
            if time.monotonic() > deadline:
                raise duckdb.InterruptException
        yield batch


def _of_duckdb(error: Exception) -> Exception:
    text = one_line(error)
    if "INTERRUPT" in text or "Interrupted" in text:
        return duckdb.InterruptException(text)
    return duckdb.OutOfMemoryException(text) if "Out of Memory" in text else QueryError(text)


def _as_printed(statement: str, types: Sequence[Any]) -> str:
    """The statement with every column under a name of its own and as a type that can be printed."""
    names = [f"c{place}" for place in range(len(types))]
    columns = [
        f"{name}::{cast}" if (cast := _text_type(kind)) else name for name, kind in zip(names, types, strict=True)
    ]
    whole = _without_end(statement)
    return f"select {', '.join(columns)} from ({whole}\n) as t({', '.join(names)})"


def _without_end(statement: str) -> str:
    """One statement without the semicolon that ends it, and without what comments stand behind that."""
    for place, letter in enumerate(statement):
        if letter != ";":
            continue
        try:
            if not duckdb.extract_statements(statement[place + 1 :]) and duckdb.extract_statements(statement[:place]):
                return statement[:place]
        except duckdb.Error:  # the semicolon stands inside a text or a comment
            continue
    return statement


def _text_type(kind: Any) -> str:
    """What to cast a type to, or nothing where it prints as it is."""
    if kind.id in LOSSLESS:
        return ""
    if kind.id not in NESTED:
        return "varchar"
    children = kind.children[:1] if kind.id == "array" else kind.children
    inner = [(name, _text_type(child) or str(child)) for name, child in children]
    if kind.id == "struct":
        return f"struct({', '.join(f'{_name(name)} {cast}' for name, cast in inner)})"
    if kind.id == "map":
        return f"map({', '.join(cast for _, cast in inner)})"
    return f"{inner[0][1]}[]"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
