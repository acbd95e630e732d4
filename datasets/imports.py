"""Importing what other tools recorded: a record at a time, once, and what cannot be taken is told with its place."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import insert, select

from flywheel.arrow import images_to_arrow, steps_to_arrow, trajectories_to_arrow
from flywheel.datasets.catalog import QUARANTINED
from flywheel.datasets.formats.catalog import READERS, SPLITTERS, SUFFIXES
from flywheel.datasets.formats.records import RecordError
from flywheel.datasets.lake import Lake
from flywheel.datasets.privacy import redact
from flywheel.datasets.splits import By, assign
from flywheel.errors import LakeError
from flywheel.trajectory import Split, Trajectory, digest

BATCH_STEPS = 2048
"""Steps that wait for a commit."""
BATCH_EPISODES = 64
ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
"""Ids name files of exports: nothing in them may lead elsewhere."""
SHOWN = 200
"""Characters of a bad record that the quarantine keeps."""


@dataclass(slots=True)
class Imported:
    """What an import did. `reasons` are the first few of the quarantine, as `file:line: reason`."""

    trajectories: int = 0
    known: int = 0
    quarantined: int = 0
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as it stands in a file; `line` counts from 1, and documents of one record have line 1."""

    path: Path
    line: int
    text: bytes


def import_files(
    lake: Lake,
    paths: Sequence[Path],
    format: str,
    split: Split = Split.TRAIN,
    progress: Callable[[int], None] = lambda done: None,
    *,
    subject: str | None = None,
    by: By = "task",
) -> Imported:
    """Import files, and the files of folders.

    `subject` says whose data they are, so that it can be deleted; `by`, what else belongs to the split for ever.

    Raises `LakeError`, having changed nothing, if a file is not there, and `LeakError` for a task of another split.
    """
    files = find_files(paths, format)
    read, done = READERS[format], Imported()
    waiting: list[Trajectory] = []
    rejected: list[dict[str, Any]] = []

    def commit() -> None:
        assign(lake, [one.task for one in waiting], by)
        new = lake.append(waiting, f"import {format}")
        done.trajectories += new
        done.known += len(waiting) - new
        _quarantine(lake, rejected)
        waiting.clear()
        rejected.clear()

    for path in files:
        for raw in _records(path, format):
            try:
                found = [_checked(one) for one in read(_parsed(raw.text), split, path.parent)]
            except RecordError as error:
                done.quarantined += 1
                if len(done.reasons) < 10:
                    done.reasons.append(f"{path}:{raw.line}: {error}")
                rejected.append(_row(raw, format, str(error), show=not subject))
            else:
                waiting += [replace(one, subject=subject) for one in found] if subject else found
            progress(1)
            if len(waiting) + len(rejected) >= BATCH_EPISODES or sum(one.length for one in waiting) >= BATCH_STEPS:
                commit()
    commit()
    return done


def find_files(paths: Sequence[Path], format: str) -> list[Path]:
    """The files of a format among files and folders. Raises `LakeError` for a path that has none."""
    return [file for path in paths for file in _files(path, format)]


def _files(path: Path, format: str) -> list[Path]:
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.suffix in SUFFIXES[format] and one.is_file())
        if not found:
            raise LakeError(f"no {' or '.join(SUFFIXES[format])} files in {path}")
        return found
    if not path.is_file():
        raise LakeError(f"no file at {path}; nothing was imported")
    return [path]


def _records(path: Path, format: str) -> Iterator[Raw]:
    """Lines of a JSON-lines file; any other file is one record, or a list of them."""
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Raw(path, number, line)
        return
    text = path.read_bytes()
    try:
        whole = _parsed(text)
    except RecordError:
        whole = None  # told when it is read
    if format in SPLITTERS and whole is not None:
        whole = SPLITTERS[format](whole)
    if not isinstance(whole, list):
        yield Raw(path, 1, text)
        return
    for number, record in enumerate(whole, start=1):
        yield Raw(path, number, json.dumps(record).encode())


def _parsed(text: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {' '.join(str(error).split())}") from error


def _checked(trajectory: Trajectory) -> Trajectory:
    """The trajectory, if it fits the data contract."""
    name = trajectory.trajectory_id
    if not (isinstance(name, str) and ID.fullmatch(name)):
        raise RecordError("a trajectory's id has 1 to 64 letters, digits, - and _")
    try:
        trajectories_to_arrow([trajectory])
        for _ in steps_to_arrow([trajectory]):
            pass
        for _ in images_to_arrow([trajectory]):
            pass
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"does not fit the data contract: {str(error).splitlines()[0]}") from error
    return trajectory


def _row(raw: Raw, format: str, reason: str, *, show: bool) -> dict[str, Any]:
    """A row of the quarantine. `show`: with the beginning of the record, which a purge by subject could not find."""
    begin = redact(raw.text.decode(errors="replace"), Counter()).replace("\x00", "")[:SHOWN]
    return {
        "record_id": digest("quarantined", format, str(raw.path), raw.line, raw.text.hex(), size=16),
        "source": str(raw.path),
        "line": raw.line,
        "format": format,
        "reason": redact(reason.replace("\x00", ""), Counter()),
        "record": begin if show else "",
        "created_at": time.time(),
    }


def _quarantine(lake: Lake, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    by_id = {row["record_id"]: row for row in rows}
    with lake.catalog.write() as connection:
        query = select(QUARANTINED.c.record_id).where(QUARANTINED.c.record_id.in_(by_id))
        for known in connection.scalars(query).all():
            del by_id[known]
        if by_id:
            connection.execute(insert(QUARANTINED), list(by_id.values()))
