"""Importing records of other tools, each exactly once; a record that cannot be read is quarantined with its position.

What comes in is a claim (`flywheel.datasets.lake.provenance`), unless a person trusts it by an explicit word.
"""

from __future__ import annotations

import getpass
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import insert, select

from flywheel.arrow import EMPTY_IS_NULL, images_to_arrow, steps_to_arrow, trajectories_to_arrow
from flywheel.datasets.formats.catalog import JOINERS, SPLITTERS, SUFFIXES, read
from flywheel.datasets.formats.parsing import BLOCK, RECORD_BYTES, Raw, parsed, raw_records
from flywheel.datasets.formats.records import MAY_BE_ABSENT, ReadContext
from flywheel.datasets.lake.catalog import QUARANTINED
from flywheel.datasets.lake.derived import FINAL_SOURCES, SOURCES
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import IMPORTED, as_claim, as_trusted, check_numbers
from flywheel.datasets.lake.redaction import redact
from flywheel.datasets.lake.splits import By, assign
from flywheel.errors import ContaminationError, LakeError, RecordError
from flywheel.text import printable
from flywheel.trajectory import Split, Trajectory, digest

BATCH_STEPS = 2048
"""Steps that wait for a commit."""
BATCH_EPISODES = 64
BATCH_BYTES = 32 << 20
"""Bytes of records whose trajectories wait for a commit: in memory they take several times as much."""
ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
"""Ids name files of exports: nothing in them may lead elsewhere."""
SHOWN = 200
"""Characters of a bad record that the quarantine keeps."""
REASONS = 10
"""Reasons that are printed; all of them stand in the quarantine."""


@dataclass(slots=True)
class Imported:
    """What an import did. `reasons` are the first few of the quarantine, as `file:line: reason`; `unread` counts what
    readers left out of records that came in."""

    trajectories: int = 0
    known: int = 0
    quarantined: int = 0
    reasons: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    @property
    def all_bad(self) -> bool:
        """Was there something, and nothing of it good?"""
        return bool(self.quarantined) and not self.trajectories and not self.known


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What every record of an import shares."""

    format: str
    split: Split
    subject: str | None
    by: str
    trust: bool


def import_files(
    lake: Lake,
    paths: Sequence[Path],
    format: str,
    split: Split = Split.TRAIN,
    progress: Callable[[int], None] = lambda done: None,
    *,
    subject: str | None = None,
    by: By = "task",
    trust: bool = False,
    most: int = RECORD_BYTES,
) -> Imported:
    """Import files, and the files of folders.

    `subject` says whose data they are, so that it can be deleted; `by`, what else belongs to the split for ever.
    `trust`: what records of ours say of themselves holds, as after a restore. `most`: bytes of a record.

    Raises `LakeError`, having changed nothing, if a file is not there. A record that cannot be taken, a task of another
    split among them, is quarantined, and the rest comes in.
    """
    options, done = ImportOptions(format, split, subject, _user(), trust), Imported()
    waiting: list[tuple[Raw, list[Trajectory]]] = []
    rejected: list[dict[str, Any]] = []
    read_bytes = read_steps = 0

    def reject(raw: Raw, reason: str) -> None:
        done.quarantined += 1
        if len(done.reasons) < REASONS:
            done.reasons.append(printable(f"{raw.path}:{raw.line}: {reason}"))
        rejected.append(_row(raw, format, reason, show=not subject))

    def commit() -> None:
        fit = _assigned(lake, waiting, by, reject)
        new = lake.append(fit, f"import {format}")
        done.trajectories += new
        done.known += len(fit) - new
        quarantine(lake, rejected)
        waiting.clear()
        rejected.clear()

    for path, root in find_files(paths, format):
        for raw in _records(path, root, format, most):
            source = ReadContext(path.parent)
            try:
                trajectories = trajectories_of(raw, options, source)
            except RecordError as error:
                reject(raw, str(error))
            else:
                waiting.append((replace(raw, text=raw.text[:BLOCK]), trajectories))
                read_steps += sum(trajectory.length for trajectory in trajectories)
                done.unread += source.unread
            progress(1)
            read_bytes += len(raw.text)
            records = len(waiting) + len(rejected)
            if records >= BATCH_EPISODES or read_steps >= BATCH_STEPS or read_bytes >= BATCH_BYTES:
                commit()
                read_bytes = read_steps = 0
    commit()
    return done


def _records(path: Path, root: Path, format: str, most: int) -> Iterator[Raw]:
    """The records of a file."""
    records = partial(raw_records, path, root, SPLITTERS.get(format), most)
    return JOINERS[format](records, most) if format in JOINERS else records()


def trajectories_of(raw: Raw, options: ImportOptions, source: ReadContext) -> list[Trajectory]:
    """A record's trajectories, as an import writes them. Raises `RecordError`, and nothing else, where it cannot be
    taken."""
    if raw.problem:
        raise RecordError(raw.problem)
    record = parsed(raw.text, source)
    path = printable(str(raw.path))
    accepted = []
    for place, trajectory in enumerate(read(options.format, record, options.split, source)):
        check_types(trajectory)
        check_numbers(trajectory)
        if options.trust:
            stored = as_trusted(trajectory, path, options.by)
        else:
            has_claims = trajectory.claims is not None
            identity = (
                digest(IMPORTED, options.format, record, place, size=16) if has_claims else trajectory.trajectory_id
            )
            stored = as_claim(trajectory, identity, path, options.by)
        _check_id(stored.trajectory_id)
        if stored.extra is not None and not stored.extra.startswith("{"):
            raise RecordError("extra is no JSON object")
        accepted.append(replace(stored, subject=options.subject) if options.subject else stored)
    return accepted


def _assigned(
    lake: Lake,
    waiting: Sequence[tuple[Raw, list[Trajectory]]],
    by: By,
    reject: Callable[[Raw, str], None],
) -> list[Trajectory]:
    """Those whose tasks belong to the split that they name, which is recorded.

    A record that only claims to be of a world's task decides nothing: what split it is of, curation asks the world.
    """

    def record(entries: Sequence[tuple[Raw, list[Trajectory]]]) -> None:
        assign(
            lake,
            [
                trajectory.task
                for _, trajectories in entries
                for trajectory in trajectories
                if trajectory.claims is None
            ],
            by,
        )

    try:
        record(waiting)
    except ContaminationError:
        fit = list[Trajectory]()
        for entry in waiting:
            try:
                record([entry])
            except ContaminationError as error:
                reject(entry[0], str(error))
            else:
                fit += entry[1]
        return fit
    return [trajectory for _, trajectories in waiting for trajectory in trajectories]


def _user() -> str:
    """Who imports, by the name that the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def find_files(paths: Sequence[Path], format: str) -> list[tuple[Path, Path]]:
    """(file of a format, what was asked for: itself or the folder that it lies in). Raises `LakeError` for a path that
    has none."""
    return [(file, path) for path in paths for file in _files(path, format)]


def _files(path: Path, format: str) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if str(file).endswith(SUFFIXES[format]) and not file.is_dir())
        if not files:
            raise LakeError(f"no {' or '.join(SUFFIXES[format])} files in {path}")
        return files
    if not path.is_file():
        raise LakeError(f"no file at {path}; nothing was imported")
    return [path]


def _check_id(name: str) -> None:
    if not ID.fullmatch(name) or redact(name, Counter()) != name:
        raise RecordError("a trajectory's id has 1 to 64 letters, digits, - and _, and is no secret")


def check_types(trajectory: Trajectory) -> None:
    """Raise `RecordError` for what does not fit the data contract."""
    try:
        for table in (trajectories_to_arrow([trajectory]), *steps_to_arrow([trajectory])):
            for name, column in zip(table.column_names, table.columns, strict=True):
                if (column.null_count and _is_missing(name, table)) or _holds_nulls(column):
                    raise RecordError(f"does not fit the data contract: {name} is null")
        for _ in images_to_arrow([trajectory]):
            pass
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"does not fit the data contract: {str(error).splitlines()[0]}") from error


def _is_missing(name: str, table: pa.Table) -> bool:
    """Is a null of this column something that the record lacks? What messages say is not stored beside them."""
    if name in MAY_BE_ABSENT or name in EMPTY_IS_NULL:
        return False
    source = (SOURCES | FINAL_SOURCES).get(name)
    if source is None:
        return True
    return bool(pc.any(pc.and_(pc.is_null(table[name]), pc.is_null(table[source]))).as_py())


def _holds_nulls(column: pa.ChunkedArray) -> bool:
    """Does a list of the column hold a null?"""
    if not pa.types.is_list(column.type):
        return False
    inner = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return bool(inner.null_count) or _holds_nulls(inner)


def _row(raw: Raw, format: str, reason: str, *, show: bool) -> dict[str, Any]:
    """A row of the quarantine. `show`: with the beginning of the record, which a purge by subject could not find."""
    begin = redact(raw.text[: 16 * SHOWN].decode(errors="replace"), Counter())[:SHOWN]
    path = printable(redact(str(raw.path), Counter()))
    return {
        "record_id": digest("quarantined", format, path, raw.line, sha256(raw.text[:BLOCK]).hexdigest(), size=16),
        "source": path,
        "line": raw.line,
        "format": format,
        "reason": printable(redact(reason, Counter())),
        "record": printable(begin) if show else "",
        "created_at": time.time(),
    }


def quarantine(lake: Lake, rows: Sequence[dict[str, Any]]) -> None:
    """Set records aside, each once, by its `record_id`."""
    if not rows:
        return
    by_id = {row["record_id"]: row for row in rows}
    with lake.catalog.write() as connection:
        query = select(QUARANTINED.c.record_id).where(QUARANTINED.c.record_id.in_(by_id))
        for known in connection.scalars(query).all():
            del by_id[known]
        if by_id:
            connection.execute(insert(QUARANTINED), list(by_id.values()))
