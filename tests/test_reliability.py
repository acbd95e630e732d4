"""Kill -9 again and again: four writers at once, a third of the batches sent twice, a compactor and purges beside them.

FLYWHEEL_ROUNDS sets the number of kills for each backend: 3 by default, 100 in `make test-reliability`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flywheel.arrow import routes_to_arrow
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.check import check
from flywheel.datasets.maintenance.compaction import collect_garbage, compact
from flywheel.datasets.maintenance.retention import purge
from flywheel.datasets.versions.versions import create, ids
from flywheel.errors import LakeError
from flywheel.trajectory import Route, RouteTo, Trajectory
from tests.servers import BACKENDS, lake_url

ROUNDS = int(os.environ.get("FLYWHEEL_ROUNDS", "3"))
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WRITERS = 4
PAUSES = {"sqlite": 0.1, "postgresql": 0.1, "s3": 0.5}
"""Seconds between two batches of a writer: what is written has to be read, and each file on S3 costs requests."""
EPISODES = 4
"""A batch."""

WRITER = textwrap.dedent("""
    import random, sys, time
    from dataclasses import replace
    url, writer, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    sys.path.insert(0, sys.argv[5])
    from made_up import trajectories
    from flywheel.datasets.lake.lake import Lake
    lake = Lake(url)
    made = list(trajectories(4, 10))
    for batch in range(first, last):
        some = [replace(one, trajectory_id=f"{writer}-{batch}-{place}") for place, one in enumerate(made)]
        lake.append(some, "batch")
        if random.random() < 1 / 3:
            assert lake.append(some, "the same again") == 0
        print(batch, flush=True)
        time.sleep(float(sys.argv[6]))
""")
COMPACTOR = textwrap.dedent("""
    import sys, time
    from flywheel.datasets.lake.lake import Lake
    from flywheel.datasets.maintenance.compaction import collect_garbage, compact
    lake = Lake(sys.argv[1])
    while True:
        compact(lake, least=4)
        collect_garbage(lake, keep_snapshots=5, grace=20.0)
        time.sleep(0.05)
""")


@dataclass
class Writer:
    """A process that is killed and started again where its last word says, and two batches before."""

    url: str
    number: int
    output: Path
    pause: float
    process: subprocess.Popen[bytes] | None = None

    def start(self, last: int = 1_000_000) -> None:
        first = max(0, self.said() - 1)
        command = [sys.executable, "-c", WRITER, self.url, str(self.number), str(first), str(last), str(BENCHMARKS)]
        command.append(str(self.pause))
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output)

    def said(self) -> int:
        """The number of batches that it told to be committed, from the first on."""
        lines = self.output.read_bytes().split(b"\n")[:-1] if self.output.exists() else []
        return max((int(line) + 1 for line in lines), default=0)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Compactor:
    """A process that compacts and collects garbage all the time."""

    url: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", COMPACTOR, self.url])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.mark.minutes
@pytest.mark.parametrize("backend", ["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKENDS[1:])])
def test_nothing_is_lost_doubled_or_left_half(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url, chance = lake_url(backend, request, tmp_path), random.Random(ROUNDS)
    writers = [Writer(url, number, tmp_path / f"writer-{number}", PAUSES[backend]) for number in range(WRITERS)]
    versions, purged = [], set[str]()
    with ExitStack() as ended, Lake(url, create=True) as lake:
        compactor = Compactor(url)
        for one in (*writers, compactor):
            one.start()
            ended.callback(one.kill)
        while any(writer.said() < 2 for writer in writers):
            time.sleep(0.05)
        for turn in range(ROUNDS):
            time.sleep(chance.uniform(0.1, 0.8))
            victim = chance.choice(writers)
            victim.kill()
            victim.start()
            if turn % 3 == 2:
                compactor.kill()
                compactor.start()
            if turn % max(2, ROUNDS // 3) == 1:
                versions.append(create(lake, "kept", "trajectory_id not like '%-3'", sample=200, seed=turn))
                gone = f"{chance.randrange(WRITERS)}-{chance.randrange(2)}-3"
                assert purge(lake, [gone], "asked for") == 1
                purged.add(gone)
        last = max(writer.said() for writer in writers) + 2
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.start(last)
        for writer in writers:
            assert writer.process is not None
            assert writer.process.wait(timeout=600) == 0
        compactor.kill()

        expected = {f"{w}-{b}-{e}" for w in range(WRITERS) for b in range(last) for e in range(EPISODES)} - purged
        assert sorted(lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()) == sorted(
            expected
        )
        steps = lake.sql("select count(*) as n, count(distinct (trajectory_id, index)) as d from steps").to_pylist()[0]
        assert steps["n"] == steps["d"] == 10 * len(expected)
        assert lake.sql("from steps anti join trajectories using (trajectory_id)").num_rows == 0
        assert [problem for problem in check(lake) if problem.part] == []
        collect_garbage(lake, keep_snapshots=0, grace=0.0)
        assert check(lake) == []
        assert all(len(ids(lake, dataset)) == dataset.trajectories for dataset in versions)
        assert versions


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 3 MiB in all."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_the_lake_stays_whole(small_disk: Path, golden: list[Trajectory]) -> None:
    """Every kind of write meets the end of the disk; with room again, all of them go on."""
    lake = Lake(small_disk / "lake", create=True)
    lake.append(golden[:3], "before")
    before = lake.sql("from trajectories order by all")
    ballast = small_disk / "ballast"
    routes = routes_to_arrow(
        [Route(trajectory.trajectory_id, RouteTo.SUPERVISED, True, "", "") for trajectory in golden[:3]]
    )
    more = [replace(golden[3], trajectory_id=str(number)) for number in range(50)]

    writes = {
        "append": lambda: lake.append(more, "more"),
        "facts": lambda: lake.append_facts("routes", routes, "routes"),
        "dataset": lambda: create(lake, "all", "true"),
        "purge": lambda: purge(lake, [golden[0].trajectory_id], "asked for"),
        "compact": lambda: compact(lake, least=1),
    }
    for left in (0, 4096, 16384, 65536):
        for name, write in writes.items():
            free = shutil.disk_usage(small_disk).free
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - left))
            try:
                write()
            except LakeError as error:
                assert "\n" not in str(error), name
                assert "No space left" in str(error) or "disk is full" in str(error) or "disk I/O" in str(error), name
            ballast.unlink()
            assert [problem for problem in check(lake) if problem.part] == [], name
            if left == 0:
                assert lake.sql("from trajectories order by all") == before, name
    for write in writes.values():
        write()
    collect_garbage(lake, keep_snapshots=0, grace=0.0)
    assert check(lake) == []
    kept = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    assert len(kept) == len(set(kept)) == 2 + len(more)
    lake.close()
