"""Splits: which side of the wall a task lies on, decided before its first episode is played, for ever."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from sqlalchemy import insert, select

from flywheel.datasets.catalog import ASSIGNMENT
from flywheel.datasets.lake import LOOKUP, Lake
from flywheel.errors import LeakError
from flywheel.trajectory import Split, Task, digest

By = Literal["task", "template", "environment"]
"""What belongs to one split as a whole: a seed, all seeds under the same parameters, or the whole environment."""


def unit_of(task: Task, by: By) -> str:
    """The name of what a task belongs to; it says nothing of the split."""
    if by == "environment":
        return task.environment
    template = f"{task.environment}@{digest(task.parameters, size=4)}"
    return template if by == "template" else f"{template}/{task.seed}"


def assign(lake: Lake, tasks: Iterable[Task], by: By = "task") -> None:
    """Record the splits of tasks. Raises `LeakError`, and records nothing, if one is decided otherwise already."""
    wanted: dict[str, Split] = {}
    for task in tasks:
        unit = unit_of(task, by)
        _agree(unit, wanted.setdefault(unit, task.split), task.split)
    units = list(wanted)
    with lake.catalog.write() as connection:
        known: dict[str, str] = {}
        for start in range(0, len(units), LOOKUP):
            query = select(ASSIGNMENT).where(ASSIGNMENT.c.unit.in_(units[start : start + LOOKUP]))
            known |= {row.unit: row.split for row in connection.execute(query)}
        for unit, split in known.items():
            _agree(unit, split, wanted[unit])
        now = time.time()
        rows = [{"unit": unit, "split": str(wanted[unit]), "created_at": now} for unit in units if unit not in known]
        if rows:
            connection.execute(insert(ASSIGNMENT), rows)


def _agree(unit: str, decided: str, wanted: str) -> None:
    if decided != wanted:
        raise LeakError(f"{unit} belongs to {decided} and cannot serve {wanted}; choose other tasks or another lake")
