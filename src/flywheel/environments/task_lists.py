"""Tasks from files: `{id, instruction, split?, group?, family?, seed?, data?}`, a row each.

Splits that no row tells are drawn by group from the group's name alone: a list that grows moves no task to another
split.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.errors import ConfigError
from flywheel.text import strict_json
from flywheel.trajectory import Split, Task, digest

FIELDS = ("id", "instruction", "split", "group", "family", "seed", "data")
SPLITS = {"train": Split.TRAIN, "dev": Split.DEV, "validation": Split.DEV, "valid": Split.DEV, "test": Split.TEST}
"""How files call the splits."""
SUFFIXES = (".jsonl", ".csv", ".parquet", ".arrow")
Row = tuple[str, Any]
"""(where it stands, what is there)."""


def read_tasks(
    source: str, environment: str, parameters: str, columns: Mapping[str, str], shares: Mapping[Split, float]
) -> dict[Split, tuple[Task, ...]]:
    """The tasks of a file or folder by split, in its order. `shares`: of groups that become dev and test.

    Raises `ConfigError` with the place of the first row that is no task.
    """
    tasks: dict[str, tuple[Task, str]] = {}
    units: dict[str, tuple[Split, str]] = {}
    for place, row in _rows(Path(source)):
        task = _task(place, _renamed(place, row, columns), environment, parameters, shares)
        if task.name in tasks:
            raise ConfigError(f"{place}: the id '{task.name}' stands at {tasks[task.name][1]} already")
        unit = task.unit or task.name
        split, first = units.setdefault(unit, (task.split, place))
        if split is not task.split:
            raise ConfigError(f"{place}: group '{unit}' lies in {task.split} here and in {split} at {first}")
        tasks[task.name] = task, place
    if not tasks:
        raise ConfigError(f"{source}: there is no task in it")
    return {split: tuple(task for task, _ in tasks.values() if task.split is split) for split in Split}


def _task(place: str, row: Mapping[str, Any], environment: str, parameters: str, shares: Mapping[Split, float]) -> Task:
    name, instruction = _word(place, row, "id"), _word(place, row, "instruction")
    unit, family = (
        _word(place, row, field) if row.get(field) not in (None, "") else "" for field in ("group", "family")
    )
    seed, data = _seed(place, row.get("seed"), name), _data(place, row)
    return Task(
        environment=environment,
        parameters=parameters,
        split=_split(place, row.get("split"), unit or name, shares),
        seed=seed,
        instruction=instruction,
        name=name,
        asked=digest(seed, instruction, data, size=4),
        unit="" if unit == name else unit,
        family=family,
        data=data,
    )


def _data(place: str, row: Mapping[str, Any]) -> str:
    """What the row tells the environment: `data`, or all the columns that have no other meaning."""
    others = {key: value for key, value in row.items() if key not in FIELDS}
    if others and "data" in row:
        raise ConfigError(f"{place}: unknown field '{next(iter(others))}'; put it into data")
    data = row.get("data", others or None)
    try:
        return "" if data is None else json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: data is no JSON: {error}") from None


def _word(place: str, row: Mapping[str, Any], field: str) -> str:
    """A field that is text, or a number that names something."""
    value = row.get(field)
    if isinstance(value, int) and not isinstance(value, bool) and field != "instruction":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{place}: a task needs {field}, as text; see [tasks] columns for other names")
    return value


def _split(place: str, given: Any, unit: str, shares: Mapping[Split, float]) -> Split:
    if given in (None, ""):
        chance, edge = int(digest("split", unit), 16) / 2**64, 0.0
        for split, share in shares.items():
            edge += share
            if chance < edge:
                return split
        return Split.TRAIN
    if given not in SPLITS:
        raise ConfigError(f"{place}: split is '{given}'; known: {', '.join(SPLITS)}")
    return SPLITS[given]


def _seed(place: str, given: Any, name: str) -> int:
    if given in (None, ""):
        return int(digest("seed", name, size=4), 16) >> 1
    try:
        seed = int(given)
    except (TypeError, ValueError, OverflowError):
        seed = -1
    if not 0 <= seed < 2**63 or isinstance(given, bool) or (isinstance(given, float) and given != seed):
        raise ConfigError(f"{place}: seed is '{given}', which is no whole number from 0 on, of 63 bits")
    return seed


def _renamed(place: str, row: Any, columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row under the names of `FIELDS`."""
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: a task is an object with id and instruction, not a {type(row).__name__}")
    if missing := [theirs for theirs in columns.values() if theirs not in row]:
        raise ConfigError(f"{place}: there is no column '{missing[0]}', which [tasks] columns names")
    fields = {ours: row[theirs] for ours, theirs in columns.items()}
    return {key: value for key, value in row.items() if key not in columns.values()} | fields


def _rows(source: Path) -> Iterator[Row]:
    if source.is_dir():
        files = [path for path in sorted(source.rglob("*")) if path.suffix in SUFFIXES]
        if not files:
            raise ConfigError(f"{source}: there is no file of tasks in it; known: {', '.join(SUFFIXES)}")
        splits = {path: _named_split(path.relative_to(source)) for path in files}
        if any(splits.values()) and (unnamed := [path for path, split in splits.items() if not split]):
            raise ConfigError(f"{unnamed[0]} names no split, as other files of {source} do; call it train, dev or test")
        for path, split in splits.items():
            for place, row in _file(path):
                lacks_split = isinstance(row, dict) and row.get("split") in (None, "")
                yield place, {**row, "split": split} if split and lacks_split else row
        return
    yield from _file(source)


def _named_split(path: Path) -> str:
    """The split that a file of a folder belongs to by its name, as `test/data-0.arrow` and `train-00000.parquet`."""
    words = [*path.parts[:-1], path.name.split(".")[0].split("-")[0]]
    return next((word for word in words if word in SPLITS), "")


def _file(path: Path) -> Iterator[Row]:
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: tasks are read from {', '.join(SUFFIXES)}, or from a folder of them")
    try:
        yield from readers[path.suffix](path)
    except FileNotFoundError:
        raise ConfigError(f"there is no file of tasks at {path}") from None
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                yield place, strict_json(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{place} is no JSON: {error}") from None


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, restkey=""), start=1):
            if "" in row:
                raise ConfigError(f"{path}, row {number} has more fields than there are columns")
            yield f"{path}, row {number}", _parsed(row)


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table, whose `data` may be JSON as text."""
    return {**row, "data": _maybe_json(row["data"])} if isinstance(row.get("data"), str) else row


def _maybe_json(value: str) -> Any:
    try:
        return strict_json(value) if value else None
    except ValueError:
        return value


def _parquet(path: Path) -> Iterator[Row]:
    yield from _table(path, pq.read_table(path))


def _arrow(path: Path) -> Iterator[Row]:
    with pa.memory_map(str(path)) as source:
        yield from _table(path, pa.ipc.open_stream(source).read_all())


def _table(path: Path, table: pa.Table) -> Iterator[Row]:
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", _parsed(row)
