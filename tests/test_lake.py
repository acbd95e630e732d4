"""The lake: exactly once, kill -9 at any moment, broken files and newer schemas refused."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from flywheel.arrow import routes_to_arrow
from flywheel.datasets.lake.catalog import CATALOG_VERSION, MIGRATION
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.check import check
from flywheel.errors import LakeError
from flywheel.trajectory import Route, RouteTo, Trajectory


def test_what_goes_in_comes_out(lake: Lake, golden: list[Trajectory]) -> None:
    assert lake.append(golden, "first") == len(golden)
    assert lake.trajectories([trajectory.trajectory_id for trajectory in golden]) == golden
    assert lake.snapshot() == 1


def test_a_trajectory_is_stored_once(lake: Lake, golden: list[Trajectory]) -> None:
    assert lake.append(golden[:5], "a") == 5
    assert lake.append(golden[3:], "b") == len(golden) - 5
    assert lake.append(golden, "c") == 0
    counts = lake.sql("select count(*) as n, count(distinct trajectory_id) as d from trajectories").to_pylist()[0]
    assert counts == {"n": len(golden), "d": len(golden)}
    steps = lake.sql("select count(*) as n, count(distinct (trajectory_id, index)) as d from steps").to_pylist()[0]
    assert steps["n"] == steps["d"] == sum(trajectory.length for trajectory in golden)


def test_facts_are_stored_once(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "episodes")
    routes = [Route(trajectory.trajectory_id, RouteTo.SUPERVISED, True, "good", "test") for trajectory in golden]
    assert lake.append_facts("routes", routes_to_arrow(routes[:4]), "routes") == 4
    assert lake.append_facts("routes", routes_to_arrow(routes), "routes") == len(golden) - 4
    assert lake.sql("select count(*) as n from routes").to_pylist() == [{"n": len(golden)}]


def test_writers_at_once_lose_and_duplicate_nothing(lake: Lake, golden: list[Trajectory]) -> None:
    parts = [golden[start : start + 3] for start in (0, 2, 4, 5, 1, 3)]
    with ThreadPoolExecutor(6) as pool:
        new = sum(pool.map(lambda part: Lake(lake.root).append(part, "race"), parts))
    assert new == len(golden)
    assert sorted(lake.sql("select trajectory_id as id from trajectories")["id"].to_pylist()) == sorted(
        trajectory.trajectory_id for trajectory in golden
    )


WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from flywheel.datasets.lake.lake import Lake
    from flywheel.rollouts.episode import Episode, Job, Origin
    from flywheel.agents.scripted import RandomPolicy
    from flywheel.environments.protocol import Observation
    from flywheel.trajectory import Split, StopReason, Task

    lake = Lake(Path(sys.argv[1]), create=True)
    print("ready", flush=True)
    for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 400):
        job, origin = Job(Task("e", "{}", Split.TRAIN, seed)), Origin(1, "collect", "c")
        blank = Episode(job, RandomPolicy(), origin, 0.0, Observation("x"))
        lake.append([blank.finished(StopReason.NO_ACTION)], "w")
        print(seed, flush=True)
""")


def test_kill_9_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    """A writer is killed again and again; what it said was committed is there, once."""
    chance = random.Random(0)
    committed: set[int] = set()
    for round_ in range(6):
        start = max(committed, default=-1) + 1
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "lake"), str(max(0, start - 3))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if round_ % 2:  # however slow the machine is, some rounds get as far as a commit
            committed.add(int(process.stdout.readline()))
        time.sleep(chance.uniform(0.05, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        committed |= {int(line) for line in process.stdout.read().split()}
        process.wait()
        process.stdout.close()
    lake = Lake(tmp_path / "lake")
    stored = lake.sql("select seed from trajectories")["seed"].to_pylist()
    assert committed
    assert len(stored) == len(set(stored))
    assert committed <= set(stored)


@pytest.mark.parametrize("committed", [True, False])
def test_ctrl_c_around_a_commit_leaves_all_or_nothing(
    any_lake: Lake, golden: list[Trajectory], monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The signal may come when the catalog has the commit and the writer does not know yet."""
    record = Lake.record

    def interrupted(*arguments: Any) -> bool:
        if committed:
            record(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lake, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        any_lake.append(golden, "interrupted")
    monkeypatch.undo()
    assert check(any_lake) == []
    assert any_lake.sql("from steps").num_rows == committed * sum(trajectory.length for trajectory in golden)
    assert any_lake.append(golden, "again") == (0 if committed else len(golden))
    assert len(any_lake.trajectories([trajectory.trajectory_id for trajectory in golden])) == len(golden)


def test_a_broken_file_is_told_in_one_line(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "episodes")
    file = next(lake.root.glob("parts/*.steps.parquet"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LakeError, match=r"broken Parquet file: .* see: flywheel lake check"):
        lake.sql("select 1")


def test_a_scrambled_file_of_the_right_size_is_told(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "episodes")
    file = next(lake.root.glob("parts/*.steps.parquet"))
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(LakeError, match=r"broken Parquet file"):
        lake.sql("select count(action) from steps")


def test_a_newer_schema_is_refused(lake: Lake) -> None:
    with lake.catalog.write() as connection:
        connection.execute(insert(MIGRATION).values(version=CATALOG_VERSION + 1, applied_at=0.0))
    with pytest.raises(LakeError, match="upgrade Flywheel"):
        Lake(lake.root)


def test_a_catalog_from_before_the_first_release_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        connection.execute("create table migration (version integer primary key, applied_at float not null)")
        connection.execute("insert into migration values (4, 0.0)")
    connection.close()
    with pytest.raises(LakeError, match="catalog schema 4, from before the first release"):
        Lake(tmp_path)


def test_no_lake_and_unknown_ids(lake: Lake, tmp_path: Path, golden: list[Trajectory]) -> None:
    with pytest.raises(LakeError, match="no lake at"):
        Lake(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    lake.append(golden[:1], "one")
    with pytest.raises(LakeError, match="no trajectory 'feed'"):
        lake.trajectories(["feed"])


def test_a_second_writer_of_the_same_ids_leaves_the_files_alone(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "a")
    before = {path.name: path.read_bytes() for path in lake.root.glob("parts/*")}
    lake.append([replace(trajectory) for trajectory in golden], "b")
    assert {path.name: path.read_bytes() for path in lake.root.glob("parts/*")} == before
