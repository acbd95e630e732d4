"""The whole wheel on a real Prefect server: two iterations, no-op the second time, kill -9 anywhere and resume."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.filters.batch import read_batch
from flywheel.filters.verifiers.replay import Replay
from flywheel.policies.registry import champion, crown

ROOT = Path(__file__).parents[1]
FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
SMOKE = ROOT / "configs" / "smoke.toml"
PAYLOAD = "select trajectory_id, route, verified, score from trajectories where iteration = 1 order by trajectory_id"

pytestmark = pytest.mark.minutes


def _run(data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLYWHEEL, "run", str(SMOKE), "--json", "--set", f"data_dir={data}", *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory, with a space in its name, in which the wheel has turned twice."""
    data = tmp_path_factory.mktemp("wheel") / "my data"
    told = _run(data)
    assert told.returncode == 0, told.stderr
    assert [report["iteration"] for report in json.loads(told.stdout)] == [1, 2]
    return data


def test_the_report_tells_everything(turned: Path) -> None:
    report = json.loads((turned / "reports" / "iteration-2.json").read_text())
    assert [rate["policy"] for rate in report["rates"]] == ["expert", "noisy_expert", "flat", "hierarchical"]
    assert report["rates"][0]["rate"] == 1.0
    for rate in report["rates"]:
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    assert [gate["challenger"].partition("-")[0] for gate in report["gates"]] == ["flat", "hierarchical"]
    assert [gate["tasks"] for gate in report["gates"]] == [6, 6]
    assert (
        sum(report["routes"].values()) == Lake(turned).sql("select count(*) as n from trajectories").to_pylist()[0]["n"]
    )
    assert (turned / "reports" / "iteration-2.png").stat().st_size > 5_000
    assert "P(verified)" in (turned / "reports" / "iteration-2.md").read_text()


def test_held_out_tasks_never_train(turned: Path) -> None:
    trained = (
        Lake(turned)
        .sql("select distinct split, purpose, route from lineage join trajectories using (trajectory_id) order by all")
        .to_pylist()
    )
    assert {row["split"] for row in trained} == {"train"}
    assert {row["purpose"] for row in trained} == {"collect"}
    assert {row["route"] for row in trained} <= {"supervised", "executor"}


def test_a_finished_wheel_is_left_alone(turned: Path) -> None:
    before = Lake(turned).snapshot()
    began = time.monotonic()
    assert _run(turned).returncode == 0
    assert time.monotonic() - began < 10
    assert Lake(turned).snapshot() == before


def test_other_settings_in_the_same_place_are_refused(turned: Path) -> None:
    told = _run(turned, "--set", "iterations=3", "--set", "collect.mistakes.loop=0.2")
    assert told.returncode == 2
    assert "was filled under other settings" in told.stderr.splitlines()[-1]


def test_prefect_recorded_stages_and_artifacts_inside_the_data_directory(turned: Path) -> None:
    import sqlite3

    with sqlite3.connect(turned / "prefect" / "prefect.db") as database:
        tasks = {name for (name,) in database.execute("select name from task_run")}
        keys = {key for (key,) in database.execute("select key from artifact")}
        states = {state for (state,) in database.execute("select state_type from flow_run")}
    database.close()
    assert {"collect", "curate", "distill", "gate", "evaluate"} <= {re.split("-", name)[0] for name in tasks}
    assert {"smoke-collect", "smoke-curate", "smoke-gate", "smoke-distill-hierarchical", "smoke-plot"} <= keys
    assert states == {"COMPLETED"}


def test_stored_episodes_replay(turned: Path) -> None:
    from flywheel.environments.catalog import canonical, open_world

    lake, config = Lake(turned), load(SMOKE)
    ids = lake.sql("select trajectory_id from trajectories order by trajectory_id limit 12")[
        "trajectory_id"
    ].to_pylist()
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        assert {said.integrity for said in Replay(world).verify(read_batch(lake, ids))} == {1.0}


@pytest.mark.parametrize("query", re.findall(r'flywheel sql "([^"]+)"', (ROOT / "README.md").read_text()))
def test_the_readmes_queries_answer(turned: Path, query: str) -> None:
    assert Lake(turned).sql(query).num_rows > 0


def test_stages_run_alone_and_rollback_undoes_a_promotion(turned: Path) -> None:
    lake = Lake(turned)
    student = lake.sql("select policy_id from policies where name = 'hierarchical' limit 1").to_pylist()[0]["policy_id"]
    data = ["--set", f"data_dir={turned}"]

    def told(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    snapshot = lake.snapshot()
    assert told("collect", str(SMOKE), *data)
    assert told("curate", str(SMOKE), *data)
    assert told("distill", str(SMOKE), "--kind", "flat", *data)
    assert told("evaluate", str(SMOKE), student, *data)["tasks"] == 6
    assert lake.snapshot() == snapshot
    before = champion(lake)
    crown(lake, student, "by hand")
    assert told("status", "--data-dir", str(turned))["champion"] == student
    assert told("rollback", "--data-dir", str(turned))["champion"] == before


STAGE_MARKS = {
    "collect": "parts/*.trajectories.parquet",
    "curate": "parts/*.verdicts.parquet",
    "distill": "policies/*/*.checkpoint/state.safetensors",
    "evaluate": "policies/flat-*/policy.json",
}
"""For each stage, the file whose first appearance says that it is under way."""


def _start_and_reach(data: Path, stage: str) -> subprocess.Popen[str]:
    """A first iteration in a session of its own, as soon as the stage is under way."""
    process = subprocess.Popen(
        [FLYWHEEL, "run", str(SMOKE), "--set", f"data_dir={data}", "--set", "iterations=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(data.glob(STAGE_MARKS[stage])):
        assert process.poll() is None, "the run ended before the stage began"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGE_MARKS)
def test_kill_9_in_a_stage_and_resume(tmp_path: Path, turned: Path, stage: str) -> None:
    data = tmp_path / "killed"
    process = _start_and_reach(data, stage)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    told = _run(data, "--set", "iterations=1")
    assert told.returncode == 0, told.stderr
    ours, whole = Lake(data), Lake(turned)
    assert ours.sql(PAYLOAD).equals(whole.sql(PAYLOAD))


@pytest.mark.slow
def test_ctrl_c_leaves_everything_resumable(tmp_path: Path) -> None:
    data = tmp_path / "stopped"
    process = _start_and_reach(data, "collect")
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "flywheel: interrupted; the same command resumes"
    assert "Traceback" not in error
    assert _run(data, "--set", "iterations=1").returncode == 0
