"""A query's result as a file: Parquet, Arrow, JSON or CSV, written as its rows come."""

from __future__ import annotations

import codecs
import csv
import json
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.datasets.lake.results import Result
from flywheel.errors import QueryError
from flywheel.text import json_value, non_finite_as_text, printable, unique


def write_rows(result: Result, form: str, sink: BinaryIO, *, non_finite_text: bool = False, shown: bool = False) -> int:
    """Write a result as parquet, arrow, json, jsonl or csv, as its rows come; how many values are NaN or infinite and
    became null in JSON. `shown`: on a terminal, which nothing in it steers. Raises `QueryError` for a column that the
    format has no type for."""
    if form == "parquet":
        _check_parquet(result.schema)
        with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), result.schema, compression="zstd") as writer:
            for batch in result.batches:
                writer.write_batch(batch.rename_columns(result.schema.names))
    elif form == "arrow":
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), result.schema) as stream:
            for batch in result.batches:
                stream.write_batch(pa.record_batch(batch.columns, schema=result.schema))
    elif form in ("json", "jsonl"):
        return _write_json(result, sink, lines=form == "jsonl", non_finite_text=non_finite_text)
    else:
        _write_csv(result, sink, shown=shown)
    return 0


def _check_parquet(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_interval(field.type) or pa.types.is_union(field.type):
            raise QueryError(f"Parquet has no type for the column {field.name} ({field.type}); cast it, as to varchar")


def _write_json(result: Result, sink: BinaryIO, *, lines: bool, non_finite_text: bool) -> int:
    names, nulls = unique(result.columns), 0

    def non_finite(value: float) -> str | None:
        nonlocal nulls
        nulls += not non_finite_text
        return non_finite_as_text(value) if non_finite_text else None

    before, between, after = ("", "\n", "\n") if lines else ("[\n  ", ",\n  ", "\n]\n")
    count = 0
    for count, row in enumerate(result.rows(), start=1):
        record = json_value(dict(zip(names, row, strict=True)), non_finite)
        sink.write(f"{between if count > 1 else before}{json.dumps(record, allow_nan=False)}".encode())
    if count:
        sink.write(after.encode())
    elif not lines:
        sink.write(b"[]\n")
    return nulls


def _write_csv(result: Result, sink: BinaryIO, *, shown: bool) -> None:
    writer = csv.writer(codecs.getwriter("utf-8")(sink), lineterminator="\n")
    writer.writerow(result.columns)
    for row in result.rows():
        writer.writerow([_flat(value, shown=shown) for value in row])


def _flat(value: Any, *, shown: bool) -> Any:
    """A value as a cell of CSV; on a terminal it steers nothing."""
    flat = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
    return printable(flat) if shown and isinstance(flat, str) else flat
