"""Results of queries for people and for scripts: tables that fit, and files written as their rows come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from flywheel.errors import QueryError
from flywheel.text import json_value, plain_console, printable, unique

if TYPE_CHECKING:
    from rich.text import Text

    from flywheel.console import Format
    from flywheel.datasets.results import Result

TABLE_ROWS = 1000
"""Rows of a table; files have all of them."""
CELL = 500
"""Characters of a cell in a table."""
NARROW, FRAME = 12, 3
"""A column that is cut still has so many characters, and its frame so many more."""


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, narrow: bool = False) -> None:
    """A table on the terminal. `narrow`: one row that does not fit is shown upright, and of several rows those columns
    are left out, and named, that do not fit."""
    from rich.table import Table

    console = plain_console()
    cells = [[cell(value) for value in row] for row in rows]
    names = [printable(name) for name in columns]
    fit = _fitting(names, cells, console.width) if narrow else len(names)
    if fit < len(names) and len(rows) == 1:
        names, cells, fit = ["column", "value"], [list(pair) for pair in zip(names, cells[0], strict=True)], 2
    table = Table()
    for name in names[:fit]:
        table.add_column(_text(name), overflow="fold")
    for row in cells:
        table.add_row(*(_text(value) for value in row[:fit]))
    console.print(table)
    if fit < len(names):
        left = ", ".join(names[fit:])
        note(f"{len(names) - fit} columns do not fit and were left out: {left}; name fewer, or add --format csv")


def cell(value: Any) -> str:
    """A value in a table. Numbers keep their integer digits; long text says how much of it is not shown."""
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e16 else f"{value:.1f}"
    elif isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    text = printable(text)
    return text if len(text) <= CELL else f"{text[:CELL]}… (+{len(text) - CELL} characters)"


def _text(value: str) -> Text:
    from rich.text import Text

    return Text(value, overflow="fold")


def _fitting(names: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> int:
    """How many columns, from the left, stand beside each other, at least one."""
    room, fit = width - 1, 0
    for place, name in enumerate(names):
        longest = max([len(name), *(len(row[place]) for row in cells)])
        room -= min(longest, max(NARROW, len(name))) + FRAME
        if room < 0:
            break
        fit += 1
    return max(fit, 1)


def note(text: str) -> None:
    """Say something about a result beside it, on stderr."""
    print(f"note: {text}", file=sys.stderr)


def give(result: Result, format: Format, output: Path | None, *, words: bool = False) -> None:
    """Print a result, or write it to a new file that appears when it is whole. Binary formats go to a file or a pipe,
    never to a terminal. `words`: NaN and infinity in JSON as strings instead of null."""
    if format == "table" and output is None:
        rows = list(islice(result.rows(), TABLE_ROWS + 1))
        show_table(result.columns, rows[:TABLE_ROWS], narrow=True)
        if len(rows) > TABLE_ROWS:
            note(f"the first {TABLE_ROWS} rows; all of them: --format csv, or --output FILE")
        return
    if output is None:
        if format in ("parquet", "arrow") and sys.stdout.isatty():
            raise QueryError(f"{format} is not for terminals; add --output FILE, or pipe it")
        sys.stdout.flush()
        _write(result, format, sys.stdout.buffer, words=words)
        sys.stdout.buffer.flush()
        return
    with _new_file(output) as file:
        _write(result, format, file, words=words)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    if not path.name:
        raise QueryError("--output needs the name of a new file")
    draft = path.with_name(f"{path.name}.part")
    if path.exists():
        raise QueryError(f"cannot write {path}: File exists; name a new file")
    try:
        with draft.open("wb") as file:
            yield file
        draft.rename(path)
    except OSError as error:
        raise QueryError(f"cannot write {path}: {error.strerror}; name a new file") from error
    finally:
        draft.unlink(missing_ok=True)


def _write(result: Result, format: Format, sink: BinaryIO, *, words: bool) -> None:
    import pyarrow as pa

    if format == "parquet":
        _check_parquet(result.schema)
        import pyarrow.parquet as pq

        with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), result.schema, compression="zstd") as writer:
            for batch in result.batches:
                writer.write_batch(batch.rename_columns(result.schema.names))
    elif format == "arrow":
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), result.schema) as stream:
            for batch in result.batches:
                stream.write_batch(pa.record_batch(batch.columns, schema=result.schema))
    elif format in ("json", "jsonl"):
        _write_json(result, sink, lines=format == "jsonl", words=words)
    else:
        _write_csv(result, sink)


def _check_parquet(schema: Any) -> None:
    import pyarrow as pa

    for field in schema:
        if pa.types.is_interval(field.type) or pa.types.is_union(field.type):
            raise QueryError(f"Parquet has no type for the column {field.name} ({field.type}); cast it, as to varchar")


def _write_json(result: Result, sink: BinaryIO, *, lines: bool, words: bool) -> None:
    names, lost = unique(result.columns), [0]
    before, between, after = ("", "\n", "\n") if lines else ("[\n  ", ",\n  ", "\n]\n")
    count = 0
    for count, row in enumerate(result.rows(), start=1):
        record = json_value(dict(zip(names, row, strict=True)), words=words, lost=lost)
        sink.write(f"{between if count > 1 else before}{json.dumps(record, allow_nan=False)}".encode())
    if count:
        sink.write(after.encode())
    elif not lines:
        sink.write(b"[]\n")
    if lost[0] and not words:
        note(f"{lost[0]} values are NaN or infinite and were written as null; --non-finite text keeps them")


def _write_csv(result: Result, sink: BinaryIO) -> None:
    import csv
    import io

    shown = sink is sys.stdout.buffer and sys.stdout.isatty()
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.columns)
    for row in result.rows():
        writer.writerow([_flat(value, shown) for value in row])
    text.detach()


def _flat(value: Any, shown: bool) -> Any:
    """A value as a cell of CSV; on a terminal it steers nothing."""
    flat = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
    return printable(flat) if shown and isinstance(flat, str) else flat
