"""Kill -9 of any process of a turn, at random moments: nothing is lost, doubled or half visible, and it completes.

The victims are whatever runs just then: the run itself (which collects and gates), the Prefect server, PostgreSQL,
workers with environments, processes of verifiers, simulators, and the trainers of torchrun. A run that ends is started
again, as a schedule would.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.check import check
from tests.served import FLYWHEEL, ROOT, SMOKE
from tests.servers import PostgreSQL

FEW = ("iterations=1", "environment.workers=1", "environment.parallel=8")
MANY = ("iterations=1", "environment.workers=2", "environment.parallel=8", "train.processes=2")
MARKS = {
    "prefect server": "Prefect server",
    "local_workers EnvironmentHost": "environment worker",
    "local_workers BatchVerifier": "verifier",
    "flywheel.distill.launching": "trainer",
    "java": "simulator",
}
MOST = int(os.environ.get("FLYWHEEL_KILLS", "100"))
A_TURN = 20
"""Kills that one turn gets at most; then it is left to end."""
RUN, DATABASE = "run", "PostgreSQL"
EPISODES = """select policy, task_id, purpose, verified, score from trajectories
              where stop_reason <> 'infrastructure' and policy = 'expert' order by all"""
ALL = "select trajectory_id, route, verified, score from trajectories order by all"
STUDENTS = "select policy_id, parent_policy_id from policies order by all"
GATES = "select gate_id, promoted, result from gates order by all"


@dataclass
class Flywheel:
    """One turn on a lake of its own, and what was done to it."""

    folder: Path
    url: str
    sets: tuple[str, ...]
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        own = (f"data_dir={self.folder}", f"lake.url={self.url}")
        sets = [part for one in (*own, *self.sets) for part in ("--set", one)]
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [FLYWHEEL, "--log", "json", "run", str(SMOKE), "--json", *sets],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )

    def lake(self) -> Lake:
        from flywheel.datasets.lake.url import parse_lake_url

        return Lake(parse_lake_url(self.url, self.folder))

    def log(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text()

    def running(self) -> dict[str, list[int]]:
        """Process ids by what they are."""
        assert self.process is not None
        found: dict[str, list[int]] = {RUN: [self.process.pid], DATABASE: [0]}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                command = " ".join(child.cmdline())
            except psutil.Error:
                continue
            for mark, name in MARKS.items():
                if mark in command:
                    found.setdefault(name, []).append(child.pid)
                    break
        return found


@contextmanager
def turning(folder: Path, postgresql: PostgreSQL, sets: tuple[str, ...]) -> Iterator[Flywheel]:
    made = Flywheel(folder, f"{postgresql.new_database()}?files={folder / 'files'}", sets)
    made.start()
    try:
        yield made
    finally:
        assert made.process is not None
        made.process.kill()
        made.process.wait()


@pytest.mark.parametrize(
    ("kills", "sets"),
    [
        pytest.param(5, FEW, marks=pytest.mark.slow, id="few"),
        pytest.param(MOST, MANY, marks=pytest.mark.slow, id="many"),
    ],
)
def test_kill_9_of_anything(kills: int, sets: tuple[str, ...], postgresql: PostgreSQL, tmp_path: Path) -> None:
    with turning(tmp_path / "undisturbed", postgresql, sets) as undisturbed:
        assert undisturbed.process is not None
        assert undisturbed.process.wait(400) == 0, undisturbed.log()
    chance, done = random.Random(kills), Counter[str]()
    starts = turns = equal = ended = 0
    began = time.monotonic()
    while done.total() < kills or not turns:
        folder = tmp_path / f"turn-{turns}"
        with turning(folder, postgresql, sets) as victim:
            ended += _torment(victim, postgresql, chance, min(A_TURN, kills - done.total()), done)
            done += victim.kills
        _is_whole(victim)
        equal += _is_like(victim, undisturbed)
        turns, starts = turns + 1, starts + victim.starts
    told = {
        "kills": dict(done),
        "turns": turns,
        "starts": starts,
        "ended by themselves": ended,
        "equal in every row": equal,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(told))
    assert done.total() >= kills
    assert turns >= 1


def _torment(victim: Flywheel, postgresql: PostgreSQL, chance: random.Random, kills: int, done: Counter[str]) -> int:
    """Kill until the turn is done; how often a run ended by itself with an error, in one line."""
    ended = 0
    deadline = time.monotonic() + 900
    while True:
        assert time.monotonic() < deadline, victim.log()
        assert victim.process is not None
        left = kills - victim.kills.total()
        pause = chance.uniform(1.0, 12.0) if left > 0 else 600.0
        try:
            code = victim.process.wait(pause)
        except subprocess.TimeoutExpired:
            name = _kill(victim, postgresql, chance, done)
            if not name:
                continue
            victim.kills[name] += 1
            if name == RUN:
                victim.process.wait()
                _is_readable(victim)
                victim.start()
            continue
        if code == 0:
            return ended
        ended += 1
        last = victim.log().strip().splitlines()[-1]
        assert code == 2, victim.log()
        assert last.startswith("flywheel: "), last
        victim.start()


def _kill(victim: Flywheel, postgresql: PostgreSQL, chance: random.Random, done: Counter[str]) -> str:
    """What was killed; nothing if it had just gone."""
    running = victim.running()
    name = chance.choice(sorted(running))
    if chance.random() < 0.5:  # whatever lives shortly would else hardly be met
        name = min(sorted(running), key=lambda one: done[one] + victim.kills[one])
    if name == DATABASE:
        postgresql.stop(signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 2.0))
        postgresql.start()
        return name
    try:
        os.kill(chance.choice(running[name]), signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return name


def _is_readable(victim: Flywheel) -> None:
    """Nothing half is visible: whole files, whole episodes, whole students."""
    from flywheel.datasets.lake.catalog import has_catalog
    from flywheel.datasets.lake.url import parse_lake_url
    from flywheel.policies.card import read_card
    from flywheel.policies.registry import policy_directory

    if not has_catalog(parse_lake_url(victim.url).catalog):
        return
    lake = victim.lake()
    with lake:
        assert [problem for problem in check(lake) if problem.segment] == []
        ids = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
        assert len(ids) == len(set(ids))
        lengths = lake.sql(
            """select t.trajectory_id from trajectories t left join
               (select trajectory_id, count(*) as n, count(distinct "index") as d from steps group by all) s
               using (trajectory_id) where coalesce(n, 0) <> length or coalesce(d, 0) <> length"""
        )
        assert lengths.num_rows == 0
        for name in lake.sql("select policy_id from policies")["policy_id"].to_pylist():
            assert read_card(policy_directory(lake, name)).policy_id == name


def _is_whole(victim: Flywheel) -> None:
    """The iteration is done, once, and every task was played to an end once."""
    _is_readable(victim)
    with victim.lake() as lake:
        assert lake.sql("select iteration from iterations where finished_at is not null")["iteration"].to_pylist() == [
            1
        ]
        twice = lake.sql(
            """select policy_id, task_id, purpose from trajectories where stop_reason <> 'infrastructure'
               group by all having count(*) > 1"""
        )
        assert twice.num_rows == 0
        assert len(lake.sql("from gates").to_pylist()) == 1


def _is_like(victim: Flywheel, undisturbed: Flywheel) -> bool:
    """Where no environment was killed, everything is as without kills; else what the seed fixes."""
    with victim.lake() as ours, undisturbed.lake() as theirs:
        assert ours.sql(EPISODES).equals(theirs.sql(EPISODES))
        broken = ours.sql("select 1 from trajectories where stop_reason = 'infrastructure'").num_rows
        if broken:
            return False
        for query in (ALL, STUDENTS, GATES):
            assert ours.sql(query).equals(theirs.sql(query)), query
        return True
