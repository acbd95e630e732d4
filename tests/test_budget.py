"""Budgets: wall-clock, tokens and money stop a turn between episodes or updates, say what is left, and it goes on."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flywheel.collect.stage import collect
from flywheel.config.flows import BudgetConfig
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import World
from flywheel.errors import BudgetError, ConfigError
from flywheel.evaluation.test_time import audited
from flywheel.flows.budget import BudgetTracker
from flywheel.policies.factory import make_policy
from flywheel.policies.registry import RANDOM
from flywheel.rollouts.play import RolloutHooks
from flywheel.trajectory import Split, Trajectory
from tests.served import FLYWHEEL, ROOT, SMOKE


def _with(config: Config, **budget: float) -> Config:
    return config.model_copy(update={"budget": BudgetConfig.model_validate(budget)})


def test_no_budget_stops_nothing(smoke: Config, lake: Lake) -> None:
    budget = BudgetTracker(smoke, lake, 1)
    budget.check("collect")
    assert not budget.over()


def test_seconds_are_those_of_one_run(smoke: Config, lake: Lake) -> None:
    budget = BudgetTracker(_with(smoke, seconds=1.0), lake, 1, began=time.monotonic() - 2)
    with pytest.raises(BudgetError, match=r"1 s is spent; gate of iteration 1 stopped; left: gate, report; the same"):
        budget.check("gate")
    assert not BudgetTracker(_with(smoke, seconds=1.0), lake, 1).over()


def test_no_further_episode_begins_and_what_runs_ends(smoke: Config, lake: Lake) -> None:
    asked = 0

    def enough() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    counts = collect(smoke, lake, 1, RANDOM, hooks=RolloutHooks(enough=enough))
    stored = lake.sql("select count(*) as n, count_if(stop_reason = 'infrastructure') as broken from trajectories")
    assert stored.to_pylist() == [{"n": 4, "broken": 0}]
    assert counts
    collect(smoke, lake, 1, RANDOM)
    assert lake.sql("select count(*) as n from trajectories").to_pylist()[0]["n"] == 24


def test_tokens_and_money_are_counted_in_the_lake(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append([replace(trajectory, tokens=120, cost=0.5) for trajectory in golden[:2]], "paid")
    assert BudgetTracker(_with(smoke, tokens=240), lake, 1).over()
    assert not BudgetTracker(_with(smoke, tokens=241), lake, 1).over()
    assert not BudgetTracker(_with(smoke, tokens=240), lake, 2).over()
    with pytest.raises(BudgetError, match=r"raise budget\.cost"):
        BudgetTracker(_with(smoke, cost=1.0), lake, 1).check("curate")


def test_what_nobody_counted_is_not_free(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append([replace(golden[2], tokens=None, cost=None)], "a server that counts nothing")
    for budget, reason in (({"tokens": 10**6}, "does not say how many"), ({"cost": 1e6}, "see chat.price_prompt")):
        with pytest.raises(BudgetError, match=reason):
            BudgetTracker(_with(smoke, **budget), lake, 1).check("collect")


@pytest.mark.slow
def test_a_turn_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    data = ["--set", f"data_dir={tmp_path / 'data'}", "--set", "iterations=1"]
    told = _run("--log", "json", *data, "--set", "budget.seconds=6")
    assert told.returncode == 3, told.stderr
    assert any(json.loads(line)["event"] == "budget.spent" for line in told.stderr.splitlines() if line[0] == "{")
    last = told.stderr.splitlines()[-1]
    assert last.startswith("flywheel: the budget of 6 s is spent; ")
    assert last.endswith("the same command goes on")
    assert "Traceback" not in told.stderr
    known = set(Lake(tmp_path / "data").sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist())
    assert known
    done = _run(*data)
    assert done.returncode == 0, done.stderr
    now = Lake(tmp_path / "data").sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    assert known < set(now)
    assert len(now) == len(set(now))
    assert json.loads(done.stdout)[0]["iteration"] == 1


def _run(*more: str) -> subprocess.CompletedProcess[str]:
    root, rest = (more[:2], more[2:]) if more[0] == "--log" else ((), more)
    command = [FLYWHEEL, *root, "run", str(SMOKE), "--json", *rest]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_budget_of_money_is_refused_where_prices_are_unknown(smoke: Config, lake: Lake, world: World) -> None:
    limited = _with(smoke, cost=1.0)
    with pytest.raises(ConfigError, match=r"needs chat\.price_prompt"):
        make_policy(limited, lake, world, "chat")
    with pytest.raises(ConfigError, match=r"needs auditor\.price_prompt"):
        audited(limited, lake, "random", Split.DEV, 1, "chat")
    with pytest.raises(ConfigError, match=r"needs chat\.price_prompt"):
        load(ROOT / "configs" / "smoke.toml", ["budget.cost=1.0", "collect.teachers={chat=1}"])
    free = ["budget.cost=1.0", "collect.teachers={chat=1}", "chat.price_prompt=0", "chat.price_completion=0"]
    assert load(ROOT / "configs" / "smoke.toml", free).budget.cost == 1.0
