"""Growing past one machine: a shared lake, Prefect on PostgreSQL, work pools, and training by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.launching import distill_apart, distill_together
from flywheel.distill.stage import distill
from flywheel.errors import FlywheelError
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory
from tests.served import FLYWHEEL, ROOT, SMOKE, run
from tests.servers import PostgreSQL, lake_url, running_prefect, web_hook

PREFECT = str(Path(sys.executable).parent / "prefect")
HOOK = "import sys; from prefect.blocks.webhook import Webhook; Webhook(url=sys.argv[1]).save('ops')"


def test_deploy_without_a_server_says_what_to_do(tmp_path: Path) -> None:
    told = subprocess.run(
        [FLYWHEEL, "deploy", str(SMOKE), "--pool", "nightly", "--set", f"data_dir={tmp_path / 'data'}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
    )
    assert told.returncode == 2
    assert told.stderr.startswith("flywheel: deploy needs a Prefect server that stays")
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def api(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server on PostgreSQL."""
    database = postgresql.new_database().replace("postgresql://", "postgresql+asyncpg://")
    with running_prefect(tmp_path_factory.mktemp("prefect"), database) as url:
        yield url


@contextmanager
def _worker(pool: str, env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", pool], env={**os.environ, **env}, stdout=file, stderr=file, cwd=ROOT
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_work_pool_turns_the_wheel_on_a_shared_lake(api: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Lake on PostgreSQL and S3, Prefect on PostgreSQL, a worker of a process pool, and a web hook that is told."""
    url = lake_url("s3", request, tmp_path)
    env = {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "home")}
    sets = ["--set", f"data_dir={tmp_path / 'data'}", "--set", f"lake.url={url}", "--set", "notify.block=webhook/ops"]
    with web_hook() as (address, heard):
        subprocess.run([sys.executable, "-c", HOOK, address], check=True, env={**os.environ, **env})
        told = run("deploy", str(SMOKE), "--pool", "nightly", "--json", *sets, env=env)
        assert told["deployments"] == ["next-turn/smoke", "distill-now/smoke"]
        assert any("tell of budget" in automation for automation in told["automations"])
        with _worker("nightly", env, tmp_path / "worker.log"):
            spent = _trigger(env, "turn", "--set", "budget.seconds=0.001")
            assert spent.returncode == 3
            assert "the budget of 0.001 s is spent" in spent.stderr
            done = _trigger(env, "turn")
            assert done.returncode == 0, (tmp_path / "worker.log").read_text()
            failed = _trigger(env, "distill", "--where", "false")
            assert "nothing in the lake satisfies" in failed.stderr
            deadline = time.monotonic() + 30
            while {one["occasion"] for one in heard} != {"budget", "failed"} and time.monotonic() < deadline:
                time.sleep(0.5)
        assert {one["occasion"] for one in heard} == {"budget", "failed"}
        assert all(one["flywheel"] == "smoke" for one in heard)
    with Lake(url) as lake:
        assert lake.sql("select count(*) as n from iterations where finished_at is not null").to_pylist() == [{"n": 1}]
        assert lake.sql("select count(*) as n from trajectories where verified = 1").to_pylist()[0]["n"] > 20
    status = run("status", "--data-dir", url, "--json", env=env)
    assert status["iterations_finished"] == [1]


def _trigger(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLYWHEEL, "trigger", str(SMOKE), *arguments, "--wait", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
    )


@pytest.mark.slow
def test_a_turn_trains_in_two_processes(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    """The student of torchrun's two processes has the name that one process gives it, and their curves are heard."""
    lake.append(golden, "collect")
    config = smoke.model_copy(update={"data_dir": lake.root})
    curate(config, lake)
    both = config.model_copy(update={"train": config.train.model_copy(update={"processes": 2})})
    heard: list[tuple[str, int, int]] = []
    card = distill_apart(both, lake, "flat", 1, lambda role, update, total, loss: heard.append((role, update, total)))
    assert heard[-1][0] == "flat"
    assert heard[-1][1] == heard[-1][2]
    assert distill(config, lake, "flat", 1).policy_id == card.policy_id


@pytest.mark.slow
def test_students_side_by_side_are_those_of_one_after_the_other(
    smoke: Config, lake: Lake, golden: list[Trajectory]
) -> None:
    lake.append(golden, "collect")
    config = smoke.model_copy(update={"data_dir": lake.root})
    side_by_side = config.model_copy(update={"train": config.train.model_copy(update={"side_by_side": True})})
    with pytest.raises(FlywheelError, match="no verified training trajectory"):
        distill_together(side_by_side, lake, KINDS, 1)
    curate(config, lake)
    roles: set[str] = set()
    cards = distill_together(side_by_side, lake, KINDS, 1, lambda role, update, total, loss: roles.add(role))
    assert roles == {"flat", "planner", "executor"}
    assert [card.policy_id for card in distill_together(config, lake, KINDS, 1)] == [card.policy_id for card in cards]


@pytest.mark.slow
def test_what_processes_of_training_refuse_is_told_here(smoke: Config, lake: Lake) -> None:
    both = smoke.model_copy(update={"data_dir": lake.root, "train": smoke.train.model_copy(update={"processes": 2})})
    with pytest.raises(FlywheelError, match="no verified training trajectory"):
        distill_apart(both, lake, "flat", 1)


KINDS = ("flat", "hierarchical")
WANTS = """
import sys
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.launching import distill_together
from pathlib import Path
config = load(Path(sys.argv[1]), [f"data_dir={sys.argv[2]}", f"train.{sys.argv[3]}", "train.epochs.flat=1000"])
distill_together(config, Lake.of(config), ["flat", "hierarchical"], 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 12.0], ids=["while they start", "while they train"])
@pytest.mark.parametrize("how", ["processes=2", "side_by_side=true"])
def test_trainers_end_with_whoever_wanted_them(
    smoke: Config, lake: Lake, golden: list[Trajectory], how: str, pause: float
) -> None:
    lake.append(golden, "collect")
    curate(smoke.model_copy(update={"data_dir": lake.root}), lake)
    process = subprocess.Popen(
        [sys.executable, "-c", WANTS, str(SMOKE), str(lake.root), how], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(trainers := _trainers(process.pid)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(pause)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(trainers, timeout=20)
    assert not alive
    assert len(gone) == 2


def _trainers(parent: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            if "flywheel.distill.launching" in child.cmdline() and "torch.distributed.run" not in child.cmdline():
                found.append(child)
    return found
