"""The files of a part, and what the catalog records of them."""

from __future__ import annotations

import time
from typing import Any

from flywheel.datasets.lake.files import Written
from flywheel.trajectory import SCHEMA_VERSION


def file_name(name: str, kind: str) -> str:
    """The file of a part."""
    return f"{name}.{kind}.parquet"


def part_row(name: str, kind: str, file: Written, snapshot: int) -> dict[str, Any]:
    """What the catalog records of a file that is read from a snapshot on."""
    return {
        "name": name,
        "kind": kind,
        "row_count": file.rows,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "schema_version": SCHEMA_VERSION,
        "begin_snapshot": snapshot,
    }


def redaction_rows(name: str, kind: str, file: Written) -> list[dict[str, Any]]:
    """What the catalog records of the secrets that never reached a file: how many of which kind."""
    now = time.time()
    return [
        {"part": name, "kind": kind, "secret": secret, "occurrences": count, "created_at": now}
        for secret, count in file.redacted
    ]
