"""Outcomes: what was reported of a recorded run, as facts beside it; the newest is in force."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import literal
from flywheel.errors import RecordError, reason_of
from flywheel.trajectory import digest

COLUMNS = ("session", "success", "score", "comment", "who")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": None}


def append_outcomes(lake: Lake, outcomes: Sequence[Mapping[str, Any]]) -> int:
    """Add outcomes, rows of the view `outcomes`, each once by its `outcome_id`; how many were new."""
    if not outcomes:
        return 0
    table = pa.Table.from_pylist(list(outcomes), ARROW_SCHEMAS["outcomes"])
    return lake.append_facts("outcomes", table, "outcomes", key=("outcome_id",))


def report_file(lake: Lake, path: Path) -> dict[str, int]:
    """Report the outcomes of a CSV file with the columns session, and success, score, comment or who.

    Raises `RecordError`, having changed nothing, for a line that says nothing, or that names an unknown session.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} cannot be read: {reason_of(error)}") from error
    if rows and ("session" not in rows[0] or set(rows[0]) - set(COLUMNS)):
        raise RecordError(f"{path} must have the column session, and of {', '.join(COLUMNS[1:])} what is known")
    wanted = literal(sorted({row["session"] or "" for row in rows}))
    newest = lake.sql(
        f"""select task_name, arg_max(trajectory_id, started_at) as trajectory_id from trajectories
            where origin = 'recorded' and list_contains({wanted}::varchar[], task_name)
              and (parent_trajectory_id is null or attempt = 0) group by task_name"""
    ).to_pylist()
    by_session = {row["task_name"]: row["trajectory_id"] for row in newest}
    at, name = lake.now(), str(path)
    outcomes = [_outcome(name, line, row, by_session, at) for line, row in enumerate(rows, start=2)]
    return {"outcomes": append_outcomes(lake, outcomes), "sessions": len(by_session)}


def _outcome(path: str, line: int, row: Mapping[str, Any], by_session: Mapping[str, str], at: float) -> dict[str, Any]:
    where, session = f"{path}:{line}", row["session"]
    if session not in by_session:
        raise RecordError(f"{where}: the lake has no recorded session '{session}'; nothing was changed")
    truth = (row.get("success") or "").strip().lower()
    if truth not in _TRUTH:
        raise RecordError(f"{where}: success is true or false, not '{truth}'; nothing was changed")
    try:
        score = float(row["score"]) if row.get("score") else None
    except ValueError:
        score = -1.0
    if score is not None and not 0 <= score <= 1:
        raise RecordError(f"{where}: score is a number from 0 to 1; nothing was changed")
    success, comment, who = _TRUTH[truth], row.get("comment") or "", row.get("who") or ""
    if success is None and score is None and not comment:
        raise RecordError(f"{where}: give success, score or comment; nothing was changed")
    values = {"success": success, "score": score, "comment": comment, "who": who}
    return {
        "trajectory_id": by_session[session],
        "outcome_id": digest("outcome", session, at, line, *values.values(), size=16),
        **values,
        "created_at": at,
    }
