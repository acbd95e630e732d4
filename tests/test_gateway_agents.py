"""Agents that Flywheel runs itself: every run is a recorded session of its task, with what it returned as outcome."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config, make
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import ConfigError
from flywheel.filters.curate import curate
from flywheel.gateway.agents import agent_tasks, run_agent
from flywheel.trajectory import Split

AGENT = """
import asyncio
import os

async def run(task, client):
    model = task.data["model"] if task.data and "model" in task.data else task.model
    reply = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": task.instruction}])
    if task.data and task.data.get("raises"):
        raise KeyError("lost")
    if task.data and task.data.get("again"):
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "more"}])
    if task.data and task.data.get("dies"):
        os._exit(3)
    if task.data and task.data.get("sleeps"):
        await asyncio.sleep(60)
    if task.data and "returns" in task.data:
        return task.data["returns"]
    return "hear" in reply.choices[0].message.content
"""


@pytest.fixture
def config(upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "an_agent", raising=False)
    (tmp_path / "an_agent.py").write_text(AGENT)
    return make(
        {
            "name": "agent",
            "data_dir": str(tmp_path / "lake"),
            "environment": {"name": "gateway/agent"},
            "tasks": {"source": "tasks.jsonl", "dev": 0, "test": 0},
            "curate": {"verifiers": ["outcome"]},
            "gateway": {"upstream": upstream},
            "agent": {"run": "an_agent:run", "model": "m", "timeout": 10.0},
        }
    )


def tasks_of(*data: dict[str, Any]) -> None:
    rows = [{"id": f"t{place}", "instruction": f"do {place}", "data": row} for place, row in enumerate(data)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(config: Config) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """How the runs ended, and what the lake has of them."""
    with Lake.of(config, create=True) as lake:
        ended = run_agent(config, lake, agent_tasks(config, Split.TRAIN, 0, 100))
        rows = lake.sql(
            """select task_name, instruction, t.success, attempt, comment
               from trajectories t left join outcomes using (trajectory_id) order by task_name, attempt"""
        ).to_pylist()
    return dict(ended), rows


def test_each_run_is_a_session_of_its_task_with_an_outcome(config: Config) -> None:
    tasks_of(
        {}, {"returns": False}, {"returns": 0.5}, {"returns": {"success": True, "comment": "well"}}, {"returns": None}
    )
    ended, rows = run(config)
    assert ended == {"succeeded": 2, "failed": 2, "unknown": 1}
    assert [(row["task_name"], row["success"]) for row in rows] == [
        ("t0", True),
        ("t1", False),
        ("t2", False),
        ("t3", True),
        ("t4", None),
    ]
    assert [row["instruction"] for row in rows] == [f"do {place}" for place in range(5)]
    with Lake.of(config) as lake:
        assert curate(config, lake) == {"continual": 2, "supervised": 2}, "an unknown end waits"


def test_a_second_run_does_what_is_left(config: Config) -> None:
    tasks_of({}, {"returns": None})
    run(config)
    tasks_of({}, {"returns": None}, {})
    ended, rows = run(config)
    assert ended == {"unknown": 1, "succeeded": 1}
    assert [(row["task_name"], row["attempt"]) for row in rows] == [("t0", 0), ("t1", 0), ("t1", 1), ("t2", 0)]


def test_an_agent_that_fails_fails_alone(config: Config) -> None:
    tasks_of({"raises": 1}, {"sleeps": 1}, {"returns": "fine"}, {})
    hasty = config.agent.model_copy(update={"timeout": 1.0})
    ended, rows = run(config.model_copy(update={"agent": hasty}))
    assert ended == {"failed": 3, "succeeded": 1}
    assert [row["comment"] for row in rows[:2]] == ["the agent raised KeyError: 'lost'", "took longer than 1 s"]
    assert "no outcome" in rows[2]["comment"]


def test_a_broken_server_is_nobodys_failure(config: Config) -> None:
    tasks_of({"model": "500"}, {})
    ended, rows = run(config)
    assert ended == {"broken": 1, "succeeded": 1}
    assert [row["task_name"] for row in rows] == ["t1"]


@pytest.mark.parametrize(
    ("budget", "says"),
    [({"max_tokens": 10}, "of tokens is spent"), ({"max_cost": 1e-6}, "of cost is spent")],
)
def test_a_run_ends_where_its_budget_does(config: Config, budget: dict[str, Any], says: str) -> None:
    tasks_of({"again": True}, {})
    agent = config.agent.model_copy(update=budget)
    priced = config.gateway.model_copy(update={"price_prompt": 1.0, "price_completion": 1.0})
    ended, rows = run(config.model_copy(update={"agent": agent, "gateway": priced}))
    assert ended == {"failed": 1, "succeeded": 1}
    assert says in rows[0]["comment"]


def test_a_run_that_kills_its_process_takes_no_other_along(config: Config) -> None:
    tasks_of({}, {"dies": True}, {}, {})
    ended, rows = run(config)
    assert ended == {"succeeded": 3, "broken": 1}
    assert {row["task_name"] for row in rows if row["success"]} == {"t0", "t2", "t3"}


def test_the_command_and_what_it_needs(config: Config) -> None:
    tasks_of({}, {})
    file = Path("agent.toml")
    file.write_text(
        f'name = "agent"\ndata_dir = "lake"\n[environment]\nname = "gateway/agent"\n'
        f'[tasks]\nsource = "tasks.jsonl"\ndev = 0\ntest = 0\n[gateway]\nupstream = "{config.gateway.upstream}"\n'
        f'[agent]\nrun = "an_agent:run"\nmodel = "m"\n'
    )
    done = CliRunner().invoke(app, ["agent", str(file), "--json"])
    assert json.loads(done.stdout) == {"succeeded": 2}
    for settings, problem in (("agent.run=nowhere:run", "nowhere"), ("tasks.source=''", "needs tasks")):
        done = CliRunner().invoke(app, ["agent", str(file), "--set", settings])
        assert isinstance(done.exception, ConfigError) and problem in str(done.exception)
    done = CliRunner().invoke(app, ["agent", str(file), "--split", "dev"])
    assert isinstance(done.exception, ConfigError) and "0 dev tasks" in str(done.exception)
