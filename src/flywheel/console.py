"""What all commands share: options, opening a lake, printing for people and for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flywheel.errors import QueryError

if TYPE_CHECKING:
    import pyarrow as pa

    from flywheel.config import Config
    from flywheel.datasets.lake import Lake

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; shipped ones are in configs/.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. collect.episodes=50.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]


def _lake_of(text: str) -> str:
    """`--set lake.url=URL` says what `--data-dir URL` says, as in the commands that take a config."""
    key, equals, url = text.partition("=")
    return url if equals and key in ("lake.url", "data_dir") else text


DataDir = Annotated[
    str,
    typer.Option(
        "--data-dir",
        "--set",
        parser=_lake_of,
        metavar="DIR|lake.url=URL",
        envvar="FLYWHEEL_LAKE",
        help="The lake: a folder, or the URL of a shared one.",
    ),
]
DEFAULT_DATA = "data/quickstart"


class Kind(StrEnum):
    """Which student."""

    HIERARCHICAL = "hierarchical"
    FLAT = "flat"


class Format(StrEnum):
    """How `flywheel sql` gives its result."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


def load_config(path: Path, sets: list[str] | None) -> Config:
    from flywheel.config import load

    return load(path, sets or [])


def lake_of(config: Config, *, create: bool = False) -> Lake:
    from flywheel.datasets.lake import Lake

    return Lake.of(config, create=create)


def open_lake(data_dir: str, *, create: bool = False) -> Lake:
    from flywheel.datasets.lake import Lake

    return Lake(data_dir, create=create)


def say(value: Any, as_json: bool) -> None:
    """Plain text for people, JSON for scripts."""
    if as_json:
        print(json.dumps(value, indent=2, default=str))
    elif isinstance(value, dict):
        for name, entry in value.items():
            print(f"{name}: {entry}")
    elif isinstance(value, list):
        for entry in value:
            print(entry)
    else:
        print(value)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(
            *("" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in row)
        )
    Console().print(table)


def give(result: pa.Table, format: Format, output: Path | None) -> None:
    """Print a query's result, or write it to a new file. Binary formats go to a file or a pipe, never to a terminal."""
    if format is Format.TABLE and output is None:
        show_table(result.column_names, [list(row.values()) for row in result.to_pylist()])
        return
    if output is None:
        if format in (Format.PARQUET, Format.ARROW) and sys.stdout.isatty():
            raise QueryError(f"{format} is not for terminals; add --output FILE, or pipe it")
        sys.stdout.flush()
        sys.stdout.buffer.write(encoded(result, format))
        sys.stdout.buffer.flush()
        return
    try:
        with output.open("xb") as file:
            file.write(encoded(result, format))
    except OSError as error:
        raise QueryError(f"cannot write {output}: {error.strerror}; name a new file") from error


def encoded(result: pa.Table, format: Format) -> bytes:
    """A result in one of the formats; a table is written as CSV."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    if format is Format.PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(result, sink, compression="zstd")
    elif format is Format.ARROW:
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
    elif format is Format.JSON:
        sink.write((json.dumps(result.to_pylist(), indent=2, default=str) + "\n").encode())
    elif format is Format.JSONL:
        sink.write("".join(f"{json.dumps(row, default=str)}\n" for row in result.to_pylist()).encode())
    else:
        sink.write(_csv(result).encode())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _csv(result: pa.Table) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.column_names)
    writer.writerows(row.values() for row in result.to_pylist())
    return text.getvalue()
