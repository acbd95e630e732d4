"""The mover: brings sessions that are over from the spool into the lake, and outcomes as facts beside them.

It runs beside the gateway, as a process that ends with it. What it is killed in, it does again: ids follow from what is
in the spool, and the lake takes each once; the spool lets go only of what the lake holds.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from flywheel.config.root import Config
from flywheel.datasets.formats.importing import quarantine
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.outcomes import append_outcomes
from flywheel.datasets.lake.splits import assign, decided_split
from flywheel.errors import ContaminationError, FlywheelError
from flywheel.gateway.spool import SessionPart, calls_of, connected, outcomes, sessions
from flywheel.gateway.trajectories import task_of_session, trajectories_of
from flywheel.runtime.parent import die_with_parent, end_without
from flywheel.trajectory import Trajectory, digest

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
NICE = 19
"""How far it stands back where the gateway wants the processor, too."""
TOGETHER = 64
"""Sessions of one commit."""
_WAITING = "closed_at is not null and trajectory_id is null order by closed_at, name limit ?"


def move(config: Config, lake: Lake, spool: sqlite3.Connection) -> int:
    """Bring all that is over into the lake; how many trajectories were new."""
    moved = 0
    while waiting := sessions(spool, _WAITING, TOGETHER):
        moved += _move_sessions(config, lake, spool, waiting)
    _move_outcomes(config, lake, spool)
    return moved


def _move_sessions(config: Config, lake: Lake, spool: sqlite3.Connection, waiting: Sequence[SessionPart]) -> int:
    trajectories, unread = list[Trajectory](), list[dict[str, object]]()
    done: list[tuple[str, int, str, int]] = []
    for session in waiting:
        before = sessions(spool, "name = ? and part < ? order by part", session.name, session.part)
        declared = next((part.task for part in (session, *before) if part.task), None)
        session = replace(session, task=declared)
        decided = decided_split(lake, task_of_session(session, config)[0])
        task, attempt = task_of_session(session, config, decided)
        calls = calls_of(spool, session.name, session.part)
        if decided not in (None, task.split):
            made, problems = list[Trajectory](), {call.id: f"of {decided}, not of {task.split}" for call in calls}
        else:
            made, problems = trajectories_of(session, before, calls, task, attempt, config)
        trajectories += made
        unread += [_unread(config, session, call, reason) for call, reason in problems.items()]
        done.append((made[0].trajectory_id if made else "", len(made), session.name, session.part))
    try:
        assign(lake, [trajectory.task for trajectory in trajectories])
    except ContaminationError:
        if len(waiting) == 1:
            raise
        return sum(_move_sessions(config, lake, spool, [session]) for session in waiting)
    new = lake.append(trajectories, f"gateway {config.gateway.app}")
    quarantine(lake, unread)
    with spool:
        spool.execute("begin immediate")
        for row in done:
            spool.execute("update session set trajectory_id = ?, trajectories = ? where name = ? and part = ?", row)
            spool.execute("delete from call where session = ? and part = ?", row[2:])
    return new


def _unread(config: Config, session: SessionPart, call: str, reason: str) -> dict[str, object]:
    return {
        "record_id": digest("gateway", call, size=16),
        "source": f"{config.gateway.environment}#{session.name}",
        "line": 0,
        "format": "gateway",
        "reason": reason,
        "record": "",
        "created_at": time.time(),
    }


def _move_outcomes(config: Config, lake: Lake, spool: sqlite3.Connection) -> None:
    """Those whose session the lake has. One of a session without a single answer has nothing to stand beside."""
    rows, done = list[dict[str, object]](), list[tuple[str]]()
    for outcome in outcomes(spool):
        parts = sessions(spool, "name = ? and began <= ? order by part", outcome.session, outcome.created_at)
        if not parts or parts[-1].trajectory_id is None:
            continue
        done.append((outcome.id,))
        main = next((part.trajectory_id for part in reversed(parts) if part.trajectory_id), None)
        if main:
            values = {name: value for name, value in asdict(outcome).items() if name not in ("id", "session")}
            rows.append({"trajectory_id": main, "outcome_id": outcome.id, **values})
        else:
            log.warning("session %s has an outcome and no answered call; it is left out", outcome.session)
    append_outcomes(lake, rows)
    if done:
        with spool:
            spool.execute("begin immediate")
            spool.executemany("delete from outcome where id = ?", done)


def main(gateway: str, settings: str) -> None:
    """Move until the gateway, a process by its number, has ended; it may be gone before this one has begun."""
    die_with_parent()
    end_without(int(gateway))
    os.nice(NICE)
    config = Config.model_validate_json(settings)
    problem = ""
    while True:
        try:
            with Lake.of(config, create=True) as lake, connected(config.data_dir) as spool:
                while True:
                    move(config, lake, spool)
                    problem = ""
                    time.sleep(PAUSE_SECONDS)
        except (FlywheelError, sqlite3.Error, OSError) as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("the lake takes nothing now, what is recorded waits: %s", problem)
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
