"""What people say of runs: tags, notes and labels, as facts beside them. Nothing is overwritten; the newest counts."""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import pyarrow as pa

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reader import Readable
from flywheel.datasets.lake.reading import quoted
from flywheel.errors import LakeError
from flywheel.text import printable

LABELS = ("succeeded", "failed")
MOST_CHARS = {"tag": 60, "note": 10_000, "label": 9}


class Kind(StrEnum):
    """What was said."""

    TAG = "tag"
    NOTE = "note"
    LABEL = "label"


def check(kind: Kind, value: str) -> str:
    """The value as it is kept. Raises `LakeError` for one that is none."""
    value = value.replace("\r\n", "\n").strip()
    if printable(value) != value:
        raise LakeError(f"a {kind} holds no control characters")
    if not value or len(value) > MOST_CHARS[kind] or (kind is Kind.TAG and "\n" in value):
        raise LakeError(f"a {kind} has 1 to {MOST_CHARS[kind]} characters{', in one line' if kind is Kind.TAG else ''}")
    if kind is Kind.LABEL and value not in LABELS:
        raise LakeError(f"a label is {' or '.join(LABELS)}, not '{value}'")
    return value


def annotate(lake: Lake, trajectory_id: str, kind: Kind, value: str, *, withdrawn: bool = False, who: str = "") -> None:
    """Say something of a run, or take it back. Raises `LakeError`, having changed nothing, for an unknown run and for a
    value that is none."""
    value = check(kind, value)
    if trajectory_id not in lake.known_ids([trajectory_id]):
        raise LakeError(f"no trajectory '{trajectory_id}' in {lake.name}")
    row = {
        "trajectory_id": trajectory_id,
        "annotation_id": uuid.uuid4().hex,
        "kind": str(kind),
        "value": value,
        "withdrawn": withdrawn,
        "who": who or somebody(),
        "created_at": lake.now(),
    }
    table = pa.Table.from_pylist([row], ARROW_SCHEMAS["annotations"])
    lake.append_facts("annotations", table, f"{kind} by {row['who']}", key=("annotation_id",))


def somebody() -> str:
    """Who speaks here: the user's name, or number where a container knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def annotations_of(lake: Readable, trajectory_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What is in force of each run, the oldest first."""
    wanted = ", ".join(map(quoted, trajectory_ids)) or "''"
    rows = lake.sql(
        f"""select trajectory_id, kind, value, arg_max(who, created_at) as who, max(created_at) as created_at
            from annotations where trajectory_id in ({wanted}) and kind <> 'label'
            group by trajectory_id, kind, value having not arg_max(withdrawn, created_at)
            union all
            select trajectory_id, 'label', label, who, since from labels where trajectory_id in ({wanted})
            order by created_at"""
    ).to_pylist()
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row.pop("trajectory_id"), []).append(row)
    return by_run


def agreed_labels(lake: Readable) -> dict[str, bool]:
    """Run → did it truly succeed? Runs that people label differently are left out."""
    rows = lake.sql(
        """select trajectory_id, any_value(label) = 'succeeded' as succeeded from labels
           group by all having count(distinct label) = 1"""
    ).to_pylist()
    return {row["trajectory_id"]: row["succeeded"] for row in rows}
