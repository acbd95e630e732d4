"""Collection and verification on a real Ray cluster of two workers: what one machine would get, and one may die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import ContaminationError, InfrastructureError
from tests.served import FLYWHEEL, ROOT, SMOKE
from tests.servers import free_port

RAY = str(Path(sys.executable).parent / "ray")
EPISODES = ("collect.episodes=100", "iterations=1", "environment.parallel=8")
PAYLOAD = "select trajectory_id, route, verified, score from trajectories where iteration = 1 order by trajectory_id"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head without cores and two workers with one each."""
    log, port = tmp_path_factory.mktemp("ray") / "log", free_port()
    common = ["--disable-usage-stats", "--block"]
    commands = [["--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false", *common]]
    commands += [[f"--address=127.0.0.1:{port}", "--num-cpus=1", *common]] * 2
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with log.open("ab") as file:
                processes.append(
                    subprocess.Popen([RAY, "start", *command], stdout=file, stderr=file, start_new_session=True)
                )
            said = len(processes)
            deadline = time.monotonic() + 60
            while log.read_text().count("will now block forever") < said:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same flywheel on this machine alone."""
    data = tmp_path_factory.mktemp("alone") / "data"
    _finished(_start(data))
    return data


def _start(data: Path, *sets: str) -> subprocess.Popen[str]:
    overrides = [part for setting in (f"data_dir={data}", *EPISODES, *sets) for part in ("--set", setting)]
    return subprocess.Popen(
        [FLYWHEEL, "run", str(SMOKE), "--json", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _finished(process: subprocess.Popen[str]) -> None:
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    assert json.loads(out)[0]["iteration"] == 1


def test_a_turn_on_two_workers_gets_what_one_machine_gets(cluster: str, alone: Path, tmp_path: Path) -> None:
    process = _start(tmp_path / "data", f"cluster.ray={cluster}")
    _finished(process)
    ours, theirs = Lake(tmp_path / "data"), Lake(alone)
    assert ours.sql(PAYLOAD).equals(theirs.sql(PAYLOAD))
    students = "select policy_id from policies order by all"
    assert ours.sql(students).equals(theirs.sql(students))


def test_kill_9_of_a_worker_s_actor_loses_and_doubles_nothing(cluster: str, alone: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = _start(data, f"cluster.ray={cluster}")
    try:
        deadline = time.monotonic() + 120
        while not list(data.glob("parts/*.trajectories.parquet")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while not (actors := _actors()):
            time.sleep(0.02)
        os.kill(actors[0], signal.SIGKILL)
        _finished(process)
    finally:
        process.kill()
    assert Lake(data).sql(PAYLOAD).equals(Lake(alone).sql(PAYLOAD))


def _actors() -> list[int]:
    """Process ids of the actors that run now."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_text()
        except OSError:
            continue
        if command.startswith("ray::_Actor"):
            found.append(int(entry.parent.name))
    return found


def test_errors_over_there_are_told_here(cluster: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ACTORS, cluster, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "4", "9", ContaminationError.__name__, InfrastructureError.__name__]


ACTORS = """
import os, sys
from flywheel.runtime.workers import in_order, open_workers
from flywheel.errors import FlywheelError, ContaminationError

class Square:
    def of(self, number):
        if number == 4:
            raise ContaminationError("four")
        if number == 5:
            os._exit(1)
        return number ** 2

for items in ([1, 2, 3], [4], [5]):
    try:
        with open_workers(1, Square, ray=sys.argv[1]) as workers:
            found = list(in_order(workers, "of", items))
        print(*found)
    except FlywheelError as error:
        print(type(error).__name__)
"""


def test_no_cluster_is_told_in_one_line(tmp_path: Path) -> None:
    process = _start(tmp_path / "data", "cluster.ray=127.0.0.1:1")
    try:
        _, error = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in error.splitlines()[-1]
    assert not (tmp_path / "data" / "catalog.sqlite").exists()
