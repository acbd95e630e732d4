"""Immutable Parquet files: written aside, synced, then renamed into place. A killed writer leaves no half file."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel.errors import LakeError

ROW_GROUP = 16_384
ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Written:
    """What the catalog records of a file."""

    rows: int
    bytes: int
    sha256: str


def write_parquet(table: pa.Table, target: Path, staging: Path) -> Written:
    """Atomically create `target`. Same table, same bytes."""
    temporary = staging / f"{target.name}.{uuid.uuid4().hex}"
    with temporary.open("wb") as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            row_group_size=ROW_GROUP,
            use_dictionary=["trajectory_id"],
        )
        file.flush()
        os.fsync(file.fileno())
    content = hashlib.sha256(temporary.read_bytes()).hexdigest()
    size = temporary.stat().st_size
    temporary.replace(target)
    sync_directory(target.parent)
    return Written(table.num_rows, size, content)


def read_rows(path: Path, trajectory_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows, whole or in part, of some trajectories in one file. Raises `LakeError` for a broken file."""
    try:
        wanted = pc.field("trajectory_id").isin(trajectory_ids)
        return pq.read_table(path, columns=columns and list(columns), filters=wanted, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise LakeError(f"broken Parquet file: {path} ({reason}); see: flywheel lake check") from error


def sync_directory(path: Path) -> None:
    """Make renames in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
