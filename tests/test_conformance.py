"""Conformance: an environment that breaks a promise is told which, and one that keeps them passes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.environments.conformance import NONSENSE, conformance
from flywheel.environments.protocol import Environment, Observation, Transition
from flywheel.trajectory import Split, Task
from tests.corridor import Corridor, CorridorWorld

STEPS = itertools.count()


class Faulty(Corridor):
    """A corridor with one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def reset(self, task: Task) -> Observation:
        seen = super().reset(task)
        return replace(seen, text=f"{seen.text} {next(STEPS)}") if self.fault == "begins" else seen

    def step(self, action: str) -> Transition:
        if self.fault == "raises" and action == NONSENSE:
            raise KeyError(action)
        step = super().step(action)
        if self.fault == "drifts":
            return replace(step, observation=replace(step.observation, text=f"step {next(STEPS)}", state_key=""))
        if self.fault == "progress":
            return replace(step, progress=2.0)
        if self.fault == "claims":
            return replace(step, success=True)
        if self.fault == "keys":
            return replace(step, observation=replace(step.observation, state_key="always"))
        if self.fault == "gift" and action == NONSENSE:
            return replace(step, success=True, progress=1.0, terminated=True)
        return step


class FaultyWorld(CorridorWorld):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.only = Faulty(fault)

    def environments(self, count: int) -> Sequence[Environment]:  # type: ignore[override]
        return [self.only] * count if self.fault == "shared" else [Faulty(self.fault) for _ in range(count)]

    def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        first = 0 if self.fault == "splits" else 100 * list(Split).index(split)
        tasks = super().tasks(split, first + start, count)
        return tasks[:1] if self.fault == "few" else tasks

    def find(self, split: Split, seed: int) -> Task:
        task = super().find(split, seed)
        return replace(task, instruction="Something else.") if self.fault == "find" else task

    def facts(self, task: Task) -> Any:
        known = super().facts(task)
        return replace(known, gold_actions=known.gold_actions[:-1]) if self.fault == "gold" else known


def test_a_corridor_keeps_its_word() -> None:
    assert [check for check in conformance(FaultyWorld("")) if not check.ok] == []


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("few", "tasks of a split are as many as asked for, each once"),
        ("splits", "no task lies in two splits"),
        ("find", "find gives the task of a seed"),
        ("begins", "a task begins the same each time"),
        ("drifts", "the same actions lead to the same"),
        ("shared", "environments do not disturb each other"),
        ("raises", "an action that means nothing is answered, not raised"),
        ("progress", "rewards are finite, progress lies in [0, 1] and is 1 exactly when the task is solved"),
        ("claims", "rewards are finite, progress lies in [0, 1] and is 1 exactly when the task is solved"),
        ("keys", "equal state keys show the same view"),
        ("gold", "the solution solves the task"),
        ("gift", "doing nothing does not solve it"),
    ],
)
def test_a_broken_promise_is_told(fault: str, promise: str) -> None:
    broken = {check.promise: check.detail for check in conformance(FaultyWorld(fault)) if check.ok is False}
    assert promise in broken
    assert all(broken.values())


def test_without_tasks_there_is_nothing_more_to_see() -> None:
    class Empty(CorridorWorld):
        def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
            raise KeyError(split)

    (only,) = conformance(Empty())
    assert (only.ok, only.detail) == (False, "KeyError: <Split.TRAIN: 'train'>")


def test_a_new_environment_works_and_has_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["env", "new", "my_shop"]).exit_code == 0
    done = CliRunner().invoke(app, ["env", "check", "my_shop", "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert {check["ok"] for check in report["checks"]} <= {True, None}
    assert {each["capability"] for each in report["capabilities"] if each["has"]} >= {"state keys"}
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_shop.py"]
    assert subprocess.run(call, cwd=tmp_path, capture_output=True).returncode == 0
    again = CliRunner().invoke(app, ["env", "new", "my_shop"])
    assert "is there already" in str(again.exception)
    assert "cannot name a module" in str(CliRunner().invoke(app, ["env", "new", "my-shop"]).exception)
    sys.modules.pop("my_shop", None)


def test_a_broken_environment_ends_with_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["env", "new", "my_broken"])
    text = (tmp_path / "my_broken.py").read_text()
    (tmp_path / "my_broken.py").write_text(text.replace("self.count / self.goal", "2 * self.count / self.goal"))
    done = CliRunner().invoke(app, ["env", "check", "my_broken", "--action", "add one"])
    assert done.exit_code == 1
    assert "BROKEN" in done.stdout
    assert "KEY=VALUE" in str(CliRunner().invoke(app, ["env", "check", "my_broken", "--param", "a"]).exception)
    sys.modules.pop("my_broken", None)
