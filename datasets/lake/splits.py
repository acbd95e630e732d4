"""Splits: train, dev or test, assigned to a task before its first episode is played, and never changed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from sqlalchemy import Connection, insert, or_, select

from flywheel.datasets.lake.catalog import ASSIGNMENT
from flywheel.datasets.lake.lake import LOOKUP, Lake
from flywheel.errors import ContaminationError
from flywheel.trajectory import NAMED, Split, Task, digest

By = Literal["task", "template", "environment"]
"""What belongs to one split as a whole: a seed, all seeds under the same parameters, or the whole environment."""


def units_of(task: Task) -> dict[By, str]:
    """The names of what a task belongs to, the smallest first; they say nothing of the split."""
    template = f"{task.environment}@{digest(task.parameters, size=4)}"
    unit = f"{template}{NAMED}{task.unit or task.name}" if task.name else f"{template}/{task.seed}"
    return {"task": unit, "template": template, "environment": task.environment}


def assign(lake: Lake, tasks: Iterable[Task], by: By = "task") -> None:
    """Record the splits of tasks, or of all that they belong to.

    Raises `ContaminationError`, and records nothing, if a task, something that holds it, or something that it holds is
    decided otherwise already.
    """
    wanted: dict[str, Split] = {}
    around: dict[str, set[Split]] = {}
    for task in tasks:
        units = units_of(task)
        _agree(units[by], wanted.setdefault(units[by], task.split), task.split)
        for unit in list(units.values())[list(units).index(by) + 1 :]:
            around.setdefault(unit, set()).add(task.split)
    with lake.catalog.write() as connection:
        known = _decided(connection, list(wanted))
        for unit, split in known.items():
            _agree(unit, split, wanted[unit])
        for unit, split in _decided(connection, list(around)).items():
            for inside in around[unit]:
                _agree(unit, split, inside)
        for unit, split in wanted.items():
            if by != "task" and unit not in known:
                _agree_inside(connection, unit, split)
        now = time.time()
        rows = [
            {"unit": unit, "split": str(split), "created_at": now}
            for unit, split in wanted.items()
            if unit not in known
        ]
        if rows:
            connection.execute(insert(ASSIGNMENT), rows)


def decided_split(lake: Lake, task: Task) -> Split | None:
    """The split of a task, if it was decided."""
    with lake.catalog.read() as connection:
        split = _decided(connection, [units_of(task)["task"]])
    return next(map(Split, split.values()), None)


def conflicts(lake: Lake, tasks: Mapping[str, Task]) -> dict[str, str]:
    """Which of some named tasks say another split than was decided: name → what was decided. Records nothing."""
    units = {name: list(units_of(task).values()) for name, task in tasks.items()}
    with lake.catalog.read() as connection:
        decided = _decided(connection, sorted({unit for task_units in units.values() for unit in task_units}))
    problems = {}
    for name, task_units in units.items():
        for unit in task_units:
            if decided.get(unit, tasks[name].split) != tasks[name].split:
                problems[name] = f"{unit} belongs to {decided[unit]}, not to {tasks[name].split}"
    return problems


def _decided(connection: Connection, units: Sequence[str]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for start in range(0, len(units), LOOKUP):
        query = select(ASSIGNMENT).where(ASSIGNMENT.c.unit.in_(units[start : start + LOOKUP]))
        splits |= {row.unit: row.split for row in connection.execute(query)}
    return splits


def _agree_inside(connection: Connection, unit: str, split: Split) -> None:
    inside = or_(*(ASSIGNMENT.c.unit.startswith(unit + mark, autoescape=True) for mark in f"@/{NAMED}"))
    other = connection.execute(select(ASSIGNMENT).where(inside, ASSIGNMENT.c.split != str(split)).limit(1)).first()
    if other is not None:
        _agree(other.unit, other.split, split)


def _agree(unit: str, decided: str, wanted: str) -> None:
    if decided != wanted:
        raise ContaminationError(
            f"{unit} belongs to {decided} and cannot serve {wanted}; choose other tasks or another lake"
        )
