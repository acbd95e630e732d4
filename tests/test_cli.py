"""The command line: quick to start, helpful, and honest about bad input in one line with exit code 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import flywheel as flywheel_package
from flywheel import __version__
from flywheel.cli.main import app
from flywheel.datasets.lake.lake import Lake
from flywheel.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
SMOKE = str(ROOT / "configs" / "smoke.toml")
COMMANDS = [
    "run",
    "collect",
    "curate",
    "distill",
    "evaluate",
    "promote",
    "rollback",
    "serve",
    "status",
    "sql",
    "show",
    "compare",
    "doctor",
    "dataset",
    "lake",
    "lineage",
]


def flywheel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLYWHEEL, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}, cwd=ROOT
    )


@pytest.fixture
def filled(lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append(golden, "episodes")
    return lake


def test_help_lists_every_command_and_starts_fast() -> None:
    best = 10.0
    for _ in range(3):
        began = time.perf_counter()
        told = flywheel("--help")
        best = min(best, time.perf_counter() - began)
    assert all(command in told.stdout for command in COMMANDS)
    assert best < 0.7


def test_the_version_is_told() -> None:
    assert flywheel("--version").stdout == f"flywheel {__version__}\n"


def test_importing_flywheel_costs_nothing() -> None:
    code = "import sys, flywheel; print(len({'torch', 'duckdb', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert alone.stdout == "0\n"
    assert (flywheel_package.Lake, flywheel_package.Trajectory) == (Lake, Trajectory)
    with pytest.raises(AttributeError, match="no attribute 'Lakes'"):
        getattr(flywheel_package, "Lakes")  # noqa: B009


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    told = flywheel(command, "--help")
    assert told.returncode == 0
    assert f"flywheel {command}" in told.stdout.split("Example:")[1]


@pytest.mark.parametrize(
    ("module", "libraries"), [("cli.main", ["torch", "prefect", "duckdb"]), ("flows.summary", ["torch", "prefect"])]
)
def test_who_only_tells_loads_no_heavy_library(module: str, libraries: list[str]) -> None:
    """`--help`, and what `flywheel status` and `flywheel history` read."""
    code = f"import sys, flywheel.{module}; print([m for m in {libraries} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def _is_one_line(told: subprocess.CompletedProcess[str], message: str) -> None:
    assert told.returncode == 2, told
    assert message in told.stderr, told.stderr
    assert told.stderr.startswith("flywheel: ")
    assert told.stderr.count("\n") == 1, told.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "configs/none.toml"], "no config at"),
        (["run", SMOKE, "--set", "train.epoch=2"], "did you mean 'epochs'?"),
        (["run", SMOKE, "--set", "student.heads=5"], "does not divide"),
        (["collect", SMOKE, "--set", "environment.name=kitchen"], "unknown environment 'kitchen'"),
        (["curate", SMOKE], "no lake at"),
        (["status"], "no lake at"),
        (["sql", "select 1"], "no lake at"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    nowhere = tmp_path / "no lake"
    takes_config = arguments[0] in ("run", "collect", "curate")
    where = ["--set", f"data_dir={nowhere}"] if takes_config else ["--data-dir", str(nowhere)]
    _is_one_line(flywheel(*arguments, *where), message)
    assert not list(tmp_path.rglob("*.parquet"))


def test_missing_java_is_one_line(tmp_path: Path) -> None:
    told = flywheel("collect", SMOKE, "--set", f"data_dir={tmp_path / 'd'}", FLYWHEEL_JAVA="/nowhere/java")
    _is_one_line(told, "no Java at /nowhere/java")


def test_an_occupied_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = flywheel("serve", SMOKE, "--set", f"data_dir={tmp_path / 'd'}", "--set", f"serve.port={port}")
    _is_one_line(told, f"port {port} is taken")


def test_questions_that_the_lake_refuses(filled: Lake) -> None:
    where = ["--data-dir", str(filled.root)]
    _is_one_line(flywheel("sql", "delete from trajectories", *where), "only a single reading statement")
    _is_one_line(flywheel("sql", "select nothing", *where), "nothing")
    _is_one_line(flywheel("show", "feed", *where), "no trajectory 'feed'")
    _is_one_line(flywheel("rollback", *where), "nothing to roll back")
    _is_one_line(flywheel("promote", SMOKE, "hier-1", "--set", f"data_dir={filled.root}"), "is not registered")
    next(filled.root.glob("parts/*.steps.parquet")).write_bytes(b"PAR1")
    _is_one_line(flywheel("sql", "select 1", *where), "broken Parquet file")


def test_sql_prints_tables_json_and_csv(filled: Lake) -> None:
    where = ["--data-dir", str(filled.root)]
    query = "select policy, count(*) as n from trajectories group by all"
    assert json.loads(flywheel("sql", query, "--json", *where).stdout) == [{"policy": "expert", "n": 8}]
    assert flywheel("sql", query, "--format", "csv", *where).stdout == "policy,n\nexpert,8\n"
    assert "expert" in flywheel("sql", query, *where).stdout


def test_show_and_status(filled: Lake, golden: list[Trajectory]) -> None:
    where = ["--data-dir", str(filled.root)]
    shown = json.loads(flywheel("show", golden[0].trajectory_id[:12], "--json", *where).stdout)
    assert [step["action"] for step in shown["steps"]] == [step.action for step in golden[0].steps]
    state = json.loads(flywheel("status", "--json", *where).stdout)
    assert (state["episodes"], state["waiting"], state["champion"]) == (8, 8, "random")


def test_dry_runs_change_nothing(filled: Lake) -> None:
    before = sorted(path for path in filled.root.rglob("*") if path.suffix == ".parquet")
    data = ["--set", f"data_dir={filled.root}"]
    for command in ("run", "collect", "curate", "evaluate", "serve"):
        told = CliRunner().invoke(app, [command, SMOKE, "--dry-run", "--json", *data])
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)
    assert sorted(path for path in filled.root.rglob("*") if path.suffix == ".parquet") == before
    assert filled.snapshot() == 1


def test_doctor_finds_what_is_missing(tmp_path: Path) -> None:
    ill = flywheel("doctor", SMOKE, "--json", "--set", f"data_dir={tmp_path / 'd'}", FLYWHEEL_JAVA="/nowhere/java")
    assert ill.returncode == 2
    assert {"environment"} <= {load["check"] for load in json.loads(ill.stdout) if not load["ok"]}
    well = flywheel("doctor", SMOKE, "--json", "--set", f"data_dir={tmp_path / 'd'}", "--set", "serve.port=47811")
    assert well.returncode == 0, well.stdout
