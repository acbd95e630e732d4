"""A student's episodes in several processes: the same as in one, each once, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flywheel.collect import play_parallel as playing
from flywheel.collect.play_parallel import play_parallel
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.protocol import World
from flywheel.errors import FlywheelError
from flywheel.filters.curate import curate
from flywheel.policies.factory import make_policy
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import NO_HOOKS, play
from flywheel.trajectory import Split, Trajectory

ROOT = Path(__file__).parents[1]
ORIGIN = Origin(1, "collect", "test")
pytestmark = pytest.mark.minutes


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, golden: list[Trajectory]) -> tuple[Config, str]:
    settings = load(
        ROOT / "configs" / "smoke.toml",
        [f"data_dir={tmp_path_factory.mktemp('shards') / 'lake'}", "environment.processes=2", "environment.parallel=4"],
    )
    lake = Lake.of(settings, create=True)
    lake.append(golden, "expert")
    curate(settings, lake)
    return settings, distill(settings, lake, "flat", 1).policy_id


def actions(lake: Lake, purpose: str) -> dict[str, list[str]]:
    rows = lake.sql(
        f"""select task_id, list(action order by "index") as actions from steps join trajectories using (trajectory_id)
            where purpose = '{purpose}' group by task_id"""
    ).to_pylist()
    return {row["task_id"]: row["actions"] for row in rows}


@pytest.mark.slow
def test_two_processes_play_what_one_plays(
    taught: tuple[Config, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, student = taught
    monkeypatch.setattr(playing, "MIN_EPISODES_PER_PROCESS", 5)
    lake = Lake.of(settings)
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 700, 11)]
    policy = make_policy(settings, lake, world, student)
    done: list[int] = []
    apart = Origin(1, "apart", "test")
    ids = play_parallel(settings, lake, world, policy, jobs, apart, done.append, NO_HOOKS)
    assert len(ids) == len(set(ids)) == sum(done) == len(jobs)
    assert lake.known_ids(ids) == set(ids)
    play(settings, lake, world, policy, jobs, Origin(1, "together", "test"))
    assert actions(lake, "apart") == actions(lake, "together")
    before = lake.snapshot()
    assert play_parallel(settings, lake, world, policy, jobs, apart, done.append, NO_HOOKS) == ids
    assert lake.snapshot() == before


def test_a_process_that_cannot_play_is_told(
    taught: tuple[Config, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, student = taught
    monkeypatch.setattr(playing, "MIN_EPISODES_PER_PROCESS", 2)
    lake = Lake.of(settings)
    policy = make_policy(settings, lake, world, student)
    policy.version = "another"
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 720, 4)]
    with pytest.raises(FlywheelError, match="decides otherwise in a worker"):
        play_parallel(settings, lake, world, policy, jobs, ORIGIN, lambda done: None, NO_HOOKS)


PLAY = """
import sys
from pathlib import Path
from flywheel.rollouts.play import NO_HOOKS
from flywheel.rollouts.episode import Job, Origin
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.collect import play_parallel as playing
from flywheel.policies.factory import make_policy
from flywheel.environments.catalog import canonical, open_world
from flywheel.trajectory import Split
playing.MIN_EPISODES_PER_PROCESS = 5
told = ["data_dir=" + sys.argv[1], "environment.processes=2", "environment.parallel=2"]
settings = load(Path("configs/smoke.toml"), told)
lake = Lake.of(settings)
with open_world(settings.environment.name, canonical(settings.environment.parameters)) as world:
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 800, int(sys.argv[3]))]
    policy = make_policy(settings, lake, world, sys.argv[2])
    origin, say = Origin(1, "killed", "t"), lambda done: print(done, flush=True)
    playing.play_parallel(settings, lake, world, policy, jobs, origin, say, NO_HOOKS)
print("done", flush=True)
"""


@pytest.mark.slow
def test_kill_9_of_all_of_it_and_again(taught: tuple[Config, str]) -> None:
    settings, student = taught
    count = 60
    command = [sys.executable, "-c", PLAY, str(settings.data_dir), student, str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) == 0:
        pass
    children = [int(part) for part in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    shard = [one for one in children if "local_workers" in Path(f"/proc/{one}/cmdline").read_text()]
    assert len(shard) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in shard) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in shard)
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert told.endswith("done\n")
    rows = Lake.of(settings).sql(
        "select count(*) as n, count(distinct seed) as seeds from trajectories where purpose = 'killed'"
    )
    assert rows.to_pylist() == [{"n": count, "seeds": count}]
