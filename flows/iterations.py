"""Iterations as the catalog knows them: which turn began under which champion, and which is finished."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update

from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import ITERATION, now
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import ConfigError
from flywheel.policies.registry import champion


@dataclass(frozen=True, slots=True)
class Iteration:
    """One turn. `champion_id` was in force when it began, and stays its opponent however often it is resumed."""

    number: int
    champion_id: str
    finished: bool
    report: dict[str, Any]


def begin(config: Config, lake: Lake, number: int) -> Iteration:
    """Open an iteration, or take up one that a killed run left. Refuses a lake that another config filled."""
    earlier = iterations(lake)
    if number > 1 and not any(iteration.number == number - 1 and iteration.finished for iteration in earlier):
        raise ConfigError(f"iteration {number - 1} is not finished; run it first: flywheel run")
    opponent = champion(lake)
    check_settings(config, lake)
    with lake.catalog.write() as connection:
        if not connection.scalar(select(ITERATION.c.iteration).where(ITERATION.c.iteration == number)):
            connection.execute(
                insert(ITERATION).values(
                    iteration=number,
                    config_digest=config.identity(),
                    champion_id=opponent,
                    report="{}",
                    started_at=now(connection),
                )
            )
    return next(iteration for iteration in iterations(lake) if iteration.number == number)


def check_settings(config: Config, lake: Lake) -> None:
    """Refuse a lake whose iterations ran under other settings: its results would not be comparable."""
    with lake.catalog.read() as connection:
        digests = set(connection.scalars(select(ITERATION.c.config_digest)))
    if digests - {config.identity()}:
        raise ConfigError(
            f"{lake.name} was filled under other settings; set another data_dir, or go back to those settings"
        )


def finish(lake: Lake, number: int, report: dict[str, Any]) -> None:
    """Mark an iteration done; the last thing that a turn does."""
    with lake.catalog.write() as connection:
        connection.execute(
            update(ITERATION)
            .where(ITERATION.c.iteration == number)
            .values(report=json.dumps(report), finished_at=now(connection))
        )


def current(lake: Lake) -> int:
    """The iteration in hand: the newest that was begun, or the first."""
    begun = iterations(lake)
    return begun[-1].number if begun else 1


def iterations(lake: Lake) -> list[Iteration]:
    """All that were begun, in order."""
    with lake.catalog.read() as connection:
        rows = connection.execute(select(ITERATION).order_by(ITERATION.c.iteration)).all()
    return [
        Iteration(row.iteration, row.champion_id, row.finished_at is not None, json.loads(row.report)) for row in rows
    ]
