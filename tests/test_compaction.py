"""Upkeep: compaction changes no answer, a purge leaves nothing, checks find every kind of damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flywheel.arrow import routes_to_arrow, segments_to_arrow
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.check import check, repair
from flywheel.datasets.maintenance.compaction import collect_garbage, compact
from flywheel.datasets.maintenance.retention import purge
from flywheel.datasets.versions.versions import create, ids
from flywheel.errors import LakeError
from flywheel.filters.segments import segment
from flywheel.trajectory import Route, RouteTo, Trajectory

EVERYTHING = "select t.*, s.* from trajectories t join steps s using (trajectory_id) order by t.trajectory_id, s.index"


@pytest.fixture
def filled(lake: Lake, golden: list[Trajectory]) -> Lake:
    """Every trajectory in a part of its own, with a route and its subgoals."""
    for trajectory in golden:
        lake.append([trajectory], "episode")
        lake.append_facts(
            "routes", routes_to_arrow([Route(trajectory.trajectory_id, RouteTo.SUPERVISED, True, "", "")]), "r"
        )
        lake.append_facts("segments", segments_to_arrow(segment(trajectory)), "s", key=["index"])
    return lake


def _files(lake: Lake) -> list[Path]:
    return sorted((lake.root / "parts").iterdir())


def test_compaction_changes_no_answer_now_or_then(filled: Lake, golden: list[Trajectory]) -> None:
    now, then = filled.sql(EVERYTHING), filled.sql(EVERYTHING, at=5)
    before = filled.snapshot()
    assert compact(filled, least=2) == 3 * len(golden)
    assert filled.snapshot() == before + 3
    assert filled.sql(EVERYTHING) == now
    assert filled.sql(EVERYTHING, at=5) == then
    assert filled.trajectories([trajectory.trajectory_id for trajectory in golden]) == golden
    assert filled.append(golden, "again") == 0
    assert compact(filled, least=2) == 0
    assert check(filled) == []


def test_garbage_is_what_neither_a_pin_nor_a_recent_snapshot_reads(filled: Lake, golden: list[Trajectory]) -> None:
    held = create(filled, "kept", "length > 0")
    everything = filled.sql(EVERYTHING)
    compact(filled, least=2)
    files = len(_files(filled))
    assert collect_garbage(filled, keep_snapshots=100, grace=0.0) == 0
    assert collect_garbage(filled, keep_snapshots=0, grace=0.0) == 0
    assert len(_files(filled)) == files
    filled.append(golden, "nothing new")
    assert len(ids(filled, held)) == len(golden)
    assert filled.sql(EVERYTHING) == everything


def test_unpinned_history_goes_with_its_files(filled: Lake) -> None:
    now = filled.sql(EVERYTHING)
    compact(filled, least=2)
    (filled.root / "parts" / "left by a killed writer").write_bytes(b"x")
    assert collect_garbage(filled, keep_snapshots=0, grace=3600.0) == 0
    collect_garbage(filled, keep_snapshots=0, grace=0.0)
    assert len(_files(filled)) == 4
    assert filled.sql(EVERYTHING) == now == filled.sql(EVERYTHING, at=filled.snapshot())
    with pytest.raises(LakeError, match="collected as garbage"):
        filled.sql(EVERYTHING, at=5)
    assert check(filled) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_a_purge_leaves_nothing_in_any_file(filled: Lake, golden: list[Trajectory], compacted: bool) -> None:
    dataset = create(filled, "all", "true")
    other = create(filled, "other", f"trajectory_id <> '{golden[2].trajectory_id}'")
    if compacted:
        compact(filled, least=2)
    gone = golden[2].trajectory_id
    assert purge(filled, [gone], "personal data") == 1
    assert purge(filled, [gone], "personal data") == 1
    for path in _files(filled):
        assert gone not in pq.read_table(path)["trajectory_id"].to_pylist()
        assert gone.encode() not in path.read_bytes()
    for view in ("trajectories", "steps", "routes", "segments"):
        assert filled.sql(f"select 1 from {view} where trajectory_id = '{gone}'").num_rows == 0
    assert filled.append([golden[2]], "late retry") == 0
    with pytest.raises(
        LakeError, match="no longer reads as it was recorded: holds revoked trajectories: purged: personal data"
    ):
        ids(filled, dataset)
    assert len(ids(filled, other)) == len(golden) - 1
    assert filled.trajectories([trajectory.trajectory_id for trajectory in golden if trajectory.trajectory_id != gone])
    assert check(filled) == []


def test_check_names_every_kind_of_damage(filled: Lake) -> None:
    changed, cut, missing = _files(filled)[:3]
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-7])
    missing.unlink()
    (filled.root / "parts" / "stray.parquet").write_bytes(b"")
    found = {problem.file: problem.reason for problem in check(filled)}
    assert found[changed.name] == "has other bytes than were written"
    assert "bytes instead of" in found[cut.name]
    assert found[missing.name] == "is missing"
    assert found["stray.parquet"] == "is not in the catalog"
    assert len(found) == 4


def test_repair_sets_aside_and_what_was_lost_can_be_collected_again(filled: Lake, golden: list[Trajectory]) -> None:
    whole = filled.sql(EVERYTHING)
    (victim,) = filled.parts_of([golden[0].trajectory_id])
    path = Path(filled.source(victim, "steps")[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LakeError, match="flywheel lake check"):
        filled.sql("from steps")
    aside = repair(filled, check(filled))
    assert {Path(one).parent.name for one in aside} == {"quarantine"}
    assert len(aside) == 2
    assert check(filled) == []
    assert filled.sql("from trajectories").num_rows == len(golden) - 1
    assert filled.append(golden, "again") == 1
    assert filled.sql(EVERYTHING) == whole


def test_compaction_purge_and_writers_at_once(lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]) -> None:
    for trajectory in golden:
        lake.append([trajectory], "first")
    gone = golden[1].trajectory_id

    def write(one: Trajectory) -> None:
        Lake(lake.root).append([one], "later")

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(write, one) for one in [*noisy, *noisy]]
        work += [pool.submit(lambda: compact(Lake(lake.root), least=2)) for _ in range(4)]
        work.append(pool.submit(lambda: purge(Lake(lake.root), [gone], "x")))
        for one in work:
            one.result()
    assert purge(lake, [gone], "x") == 1
    expected = {trajectory.trajectory_id for trajectory in [*golden, *noisy]} - {gone}
    found = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    assert sorted(found) == sorted(expected)
    steps = lake.sql("select count(*) as n, count(distinct (trajectory_id, index)) as d from steps").to_pylist()[0]
    assert steps["n"] == steps["d"]
    assert check(lake) == []


KEEPER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from flywheel.datasets.lake.lake import Lake
    from flywheel.datasets.maintenance.compaction import collect_garbage, compact
    lake = Lake(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        compact(lake, least=2)
        collect_garbage(lake, keep_snapshots=0, grace=60.0)
""")


@pytest.mark.minutes
@pytest.mark.parametrize("seed", range(5))
def test_kill_9_of_the_upkeep_loses_nothing(lake: Lake, golden: list[Trajectory], seed: int) -> None:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, str(lake.root)], stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == "ready\n"
    chance = random.Random(seed)
    for trajectory in golden[: chance.randrange(3, len(golden))]:
        lake.append([trajectory], "episode")
        time.sleep(chance.random() * 0.05)
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.communicate()
    lake.append(golden, "rest")
    assert lake.trajectories([trajectory.trajectory_id for trajectory in golden]) == golden
    assert lake.sql("from trajectories").num_rows == len(golden)
    assert [problem for problem in check(lake) if problem.part] == []
    collect_garbage(lake, keep_snapshots=0, grace=0.0)
    assert check(lake) == []


def test_what_a_killed_writer_leaves_is_collected(lake: Lake, golden: list[Trajectory]) -> None:
    (lake.staging / "0.steps.parquet").write_bytes(b"half")
    lake.append(golden, "episodes")
    assert collect_garbage(lake, grace=3600.0) == 0
    assert collect_garbage(lake, grace=0.0) == 1
    assert list(lake.staging.iterdir()) == []
