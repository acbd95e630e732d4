"""Integrity of the lake: `check` holds every file against the catalog; `repair` moves broken ones to quarantine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import delete, select

from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import FACT, PART, TRAJECTORY, new_snapshot
from flywheel.datasets.lake.files import flaw_of, row_groups
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.part_files import file_name
from flywheel.datasets.maintenance.compaction import unknown_files


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with which file. `part` is empty for files that the catalog does not list."""

    file: str
    path: str
    reason: str
    part: str = ""


def check(lake: Lake, progress: Callable[[int], None] = lambda done: None) -> list[Problem]:
    """Every problem of the lake's files: missing, changed, miscounted, misplaced, without an owner, not listed.

    A file that is not listed may be the work of a writer that is at it now: check a quiet lake.
    """
    with lake.catalog.read() as connection:
        parts = connection.execute(select(PART).order_by(PART.c.begin_snapshot, PART.c.name)).all()
        listed = {row.trajectory_id: row.part for row in connection.execute(select(TRAJECTORY))}
    problems = []
    for row in parts:
        file = file_name(row.name, row.kind)
        reason = _reason(lake, file, row.bytes, row.sha256, row.row_count)
        if not reason and row.kind in ("trajectories", "steps", "images"):
            placed = {owner for owner, name in listed.items() if name == row.name or row.end_snapshot is not None}
            groups = row_groups(lake.source(row.name, row.kind), ["trajectory_id"])
            if strangers := {owner for table in groups for owner in table["trajectory_id"].to_pylist()} - placed:
                reason = f"holds {min(strangers)}, which the catalog does not place here"
        if reason:
            problems.append(Problem(file, lake.storage.address(file), reason, row.name))
        progress(1)
    problems += [Problem(file, lake.storage.address(file), "is not in the catalog") for file in unknown_files(lake)]
    return problems


def _reason(lake: Lake, file: str, size: int, sha256: str, rows: int) -> str:
    """Why a file is not what the catalog recorded, or nothing."""
    address = lake.storage.address(file)
    if flaw := flaw_of(address, lake.storage.filesystem, size, sha256):
        return flaw
    try:
        row_count = pq.read_metadata(address, filesystem=lake.storage.filesystem).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        return f"is not Parquet: {str(error).splitlines()[0]}"
    return "" if row_count == rows else f"has {row_count} rows instead of {rows}"


def mend(config: Config, lake: Lake) -> list[Problem]:
    """Find broken files by their checksums and set them aside (`lake.check`); what was wrong with which.

    Files that the catalog does not list are left alone: another writer may be at work on them.
    """
    here = lake.storage.filesystem is None
    if config.lake.check == "never" or (config.lake.check == "auto" and not here):
        return []
    broken = [problem for problem in check(lake) if problem.part]
    repair(lake, broken)
    return broken


def repair(lake: Lake, problems: list[Problem]) -> list[str]:
    """Set broken parts and unlisted files aside, under `quarantine/`. Where they lie now.

    A part is withdrawn whole: its trajectories and facts can be written again, and collection or curation do so.
    """
    broken = sorted({problem.part for problem in problems if problem.part})
    with lake.catalog.read() as connection:
        rows = connection.execute(select(PART).where(PART.c.name.in_(broken))).all()
    if broken:
        with lake.catalog.write() as connection:
            new_snapshot(connection, f"repair: withdraw {len(broken)} parts")
            connection.execute(delete(PART).where(PART.c.name.in_(broken)))
            for ledger in (TRAJECTORY, FACT):
                connection.execute(delete(ledger).where(ledger.c.part.in_(broken)))
    present = lake.storage.listing()
    files = {file_name(row.name, row.kind) for row in rows} | {problem.file for problem in problems}
    return [lake.storage.set_aside(file) for file in sorted(files) if file in present]
