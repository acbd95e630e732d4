"""Results of queries for people and for scripts: tables that fit, and files written as their rows come."""

from __future__ import annotations

import errno
import json
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from flywheel.cli.console import Format
from flywheel.errors import QueryError
from flywheel.text import plain_console, printable

if TYPE_CHECKING:
    from rich.text import Text

    from flywheel.datasets.lake.results import Result

TABLE_ROWS = 1000
"""Rows of a table; files have all of them."""
MAX_CELL_CHARS = 500
"""Characters of a cell in a table."""
NARROW, FRAME = 12, 3
"""A column that is cut still has so many characters, and its frame so many more."""


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, fit_width: bool = False) -> None:
    """A table on the terminal. `fit_width`: one row that does not fit is shown upright, and of several rows those
    columns are left out, and named, that do not fit."""
    from rich.table import Table

    console = plain_console()
    cells = [[cell(value) for value in row] for row in rows]
    names = [printable(name) for name in columns]
    fit = _fitting(names, cells, console.width) if fit_width else len(names)
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
    return (
        text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]}… (+{len(text) - MAX_CELL_CHARS} characters)"
    )


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


def write_result(result: Result, format: Format, output: Path | None, *, non_finite_text: bool = False) -> None:
    """Print a result, or write it to a new file that appears when it is whole. Binary formats go to a file or a pipe,
    never to a terminal. `non_finite_text`: NaN and infinity in JSON as strings instead of null."""
    if format is Format.TABLE and output is None:
        rows = list(islice(result.rows(), TABLE_ROWS + 1))
        show_table(result.columns, rows[:TABLE_ROWS], fit_width=True)
        if len(rows) > TABLE_ROWS:
            note(f"the first {TABLE_ROWS} rows; all of them: --format csv, or --output FILE")
        return
    if output is None:
        if format in (Format.PARQUET, Format.ARROW) and sys.stdout.isatty():
            raise QueryError(f"{format} is not for terminals; add --output FILE, or pipe it")
        sys.stdout.flush()
        _write(result, format, sys.stdout.buffer, non_finite_text=non_finite_text, shown=sys.stdout.isatty())
        sys.stdout.buffer.flush()
        return
    with _new_file(output) as file:
        _write(result, format, file, non_finite_text=non_finite_text)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    if not path.name:
        raise QueryError("--output needs the name of a new file")
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with draft.open("xb") as file:
            yield file
        draft.rename(path)
    except OSError as error:
        raise QueryError(f"cannot write {path}: {error.strerror}; name a new file") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _write(result: Result, format: Format, sink: BinaryIO, *, non_finite_text: bool, shown: bool = False) -> None:
    from flywheel.datasets.lake.result_files import write_rows

    if nulls := write_rows(result, format, sink, non_finite_text=non_finite_text, shown=shown):
        note(f"{nulls} values are NaN or infinite and were written as null; --non-finite text keeps them")
