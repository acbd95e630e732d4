"""Is the lake what its catalog says? `check` reads every byte; `repair` sets aside what is broken, deletes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import delete, select

from flywheel.datasets.catalog import FACT, SEGMENT, TRAJECTORY, new_snapshot
from flywheel.datasets.lake import Lake
from flywheel.datasets.upkeep import unknown_files

QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with which file. `segment` is empty for files that the catalog does not list."""

    path: Path
    reason: str
    segment: str = ""


def check(lake: Lake, progress: Callable[[int], None] = lambda done: None) -> list[Problem]:
    """Every problem of the lake's files: missing, changed, miscounted, misplaced, not listed.

    A file that is not listed may be the work of a writer that is at it now: check a quiet lake.
    """
    with lake.catalog.read() as connection:
        segments = connection.execute(select(SEGMENT).order_by(SEGMENT.c.begin_snapshot, SEGMENT.c.name)).all()
        listed = {row.trajectory_id: row.segment for row in connection.execute(select(TRAJECTORY))}
        withdrawn = {row.name for row in segments if row.end_snapshot is not None}
    problems = []
    for row in segments:
        path = lake.path(row.name, row.kind)
        reason = _reason(path, row.bytes, row.sha256, row.row_count)
        if reason:
            problems.append(Problem(path, reason, row.name))
        elif row.kind == "trajectories" and row.name not in withdrawn:
            ids = pq.read_table(path, columns=["trajectory_id"], partitioning=None)["trajectory_id"].to_pylist()
            if strangers := [one for one in ids if listed.get(one) != row.name]:
                problems.append(Problem(path, f"holds {strangers[0]}, which the catalog does not place here", row.name))
        progress(1)
    problems += [Problem(path, "is not in the catalog") for path in unknown_files(lake)]
    return problems


def _reason(path: Path, size: int, sha256: str, rows: int) -> str:
    """Why a file is not what the catalog recorded, or nothing."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return "has other bytes than were written"
    try:
        found = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        return f"is not Parquet: {str(error).splitlines()[0]}"
    return "" if found == rows else f"has {found} rows instead of {rows}"


def repair(lake: Lake, problems: list[Problem]) -> list[Path]:
    """Set broken segments and unlisted files aside, under `quarantine/`. Where they lie now.

    A segment is withdrawn whole: its trajectories and facts can be written again, and collection or curation do so.
    """
    folder = lake.root / QUARANTINE
    folder.mkdir(exist_ok=True)
    broken = sorted({problem.segment for problem in problems if problem.segment})
    with lake.catalog.read() as connection:
        files = {
            lake.path(row.name, row.kind)
            for row in connection.execute(select(SEGMENT).where(SEGMENT.c.name.in_(broken)))
        }
    if broken:
        with lake.catalog.write() as connection:
            new_snapshot(connection, f"repair: withdraw {len(broken)} segments")
            connection.execute(delete(SEGMENT).where(SEGMENT.c.name.in_(broken)))
            for ledger in (TRAJECTORY, FACT):
                connection.execute(delete(ledger).where(ledger.c.segment.in_(broken)))
    aside = []
    for path in sorted(files | {problem.path for problem in problems}):
        if path.is_file():
            path.replace(folder / path.name)
            aside.append(folder / path.name)
    return aside
