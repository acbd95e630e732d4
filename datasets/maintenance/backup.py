"""Backup and restore: a whole lake copied into another place, of whatever kind, while its writers go on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
from sqlalchemy import delete, insert, select

from flywheel.datasets.lake.catalog import GARBAGE, METADATA, MIGRATION, PART, SNAPSHOT
from flywheel.datasets.lake.files import writing
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.part_files import file_name
from flywheel.errors import LakeError

BLOCK = 1 << 20
LOCAL = ("policies", "reports")
"""Folders of `root` that belong to the lake's history."""


def copy(source: Lake, target: Lake, progress: Callable[[int], None] = lambda done: None) -> int:
    """Make `target` what `source` is now. How many files were new there.

    The target is empty or an earlier copy, of which only what is new is copied. Files go first and the catalog in one
    transaction last: killed at any moment, the target is the copy that it was before.
    """
    with source.catalog.read() as connection:
        tables = {
            table: [dict(row._mapping) for row in connection.execute(select(table))]
            for table in METADATA.sorted_tables
            if table not in (MIGRATION, GARBAGE)
        }
    _check_target(source, target, {row["id"]: row["created_at"] for row in tables[SNAPSHOT]})
    present, copied = target.storage.listing(), 0
    for row in tables[PART]:
        name = file_name(row["name"], row["kind"])
        if name not in present or present[name].bytes != row["bytes"]:
            _copy_file(source, target, name, row["sha256"])
            copied += 1
        progress(1)
    for folder in LOCAL:
        if (source.root / folder).is_dir():
            with writing(target.root / folder):
                shutil.copytree(source.root / folder, target.root / folder, dirs_exist_ok=True)
    with target.catalog.write() as connection:
        for table in reversed(METADATA.sorted_tables):
            if table in tables:
                connection.execute(delete(table))
        for table, rows in tables.items():
            if rows:
                connection.execute(insert(table), rows)
    return copied


def _check_target(source: Lake, target: Lake, snapshots: dict[int, float]) -> None:
    with target.catalog.read() as connection:
        newest = connection.execute(select(SNAPSHOT).order_by(SNAPSHOT.c.id.desc())).first()
    if newest is not None and snapshots.get(newest.id) != newest.created_at:
        raise LakeError(f"{target.name} is neither empty nor an earlier copy of {source.name}; name another place")


def _copy_file(source: Lake, target: Lake, name: str, sha256: str) -> None:
    """Copy one file and hold what was read against its checksum."""
    opener, checksum = source.storage.filesystem or fsspec.filesystem("file"), hashlib.sha256()
    staged: Path = target.staging / name
    try:
        with opener.open(source.storage.address(name), "rb") as read, writing(staged), staged.open("wb") as written:
            while block := read.read(BLOCK):
                checksum.update(block)
                written.write(block)
    except FileNotFoundError as error:
        raise LakeError(f"{source.storage.address(name)} went away meanwhile; run it again") from error
    if checksum.hexdigest() != sha256:
        staged.unlink()
        raise LakeError(f"broken Parquet file: {source.storage.address(name)}; see: flywheel lake check")
    target.storage.publish(staged, name)
