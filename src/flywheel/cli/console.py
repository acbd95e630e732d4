"""What all commands share: options, opening a lake, printing for people and for scripts."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flywheel.text import json_value, printable

if TYPE_CHECKING:
    from flywheel.config.root import Config
    from flywheel.datasets.lake.lake import Lake

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


class NonFinite(StrEnum):
    """What stands in JSON for NaN and infinity, which it has no words for."""

    NULL = "null"
    TEXT = "text"


class Format(StrEnum):
    """How `flywheel sql` gives its result."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


def load_config(path: Path, sets: list[str] | None) -> Config:
    from flywheel.config.root import load

    return load(path, sets or [])


def lake_of(config: Config, *, create: bool = False) -> Lake:
    from flywheel.datasets.lake.lake import Lake

    return Lake.of(config, create=create)


def open_lake(data_dir: str, *, create: bool = False, only_one: bool = False) -> Lake:
    """The lake that `--data-dir` names. `only_one`: to read from, also the only lake here where none is named."""
    from flywheel.datasets.lake.lake import Lake

    return Lake(_found(data_dir) if only_one else data_dir, create=create)


def _found(data_dir: str) -> str:
    """The lake that is meant: the only one here, where none is named and the quickstart's is not here."""
    if data_dir != DEFAULT_DATA or Path(DEFAULT_DATA).exists():
        return data_dir
    lakes = sorted(str(catalog.parent) for catalog in Path().glob("data/*/catalog.sqlite"))
    if len(lakes) != 1:
        return data_dir
    print(f"note: {lakes[0]}, the only lake here; another with --data-dir", file=sys.stderr)
    return lakes[0]


def say(value: Any, as_json: bool) -> None:
    """Plain text for people, JSON for scripts."""
    if as_json:
        print(json.dumps(json_value(value), indent=2, default=str))
    elif isinstance(value, dict):
        for name, entry in value.items():
            print(printable(f"{name}: {entry}"))
    elif isinstance(value, list):
        for entry in value:
            print(printable(str(entry)))
    else:
        print(printable(str(value)))
