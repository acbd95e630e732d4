"""Seeing it: history, status, metrics and logs say what happened; they read the lake, and nothing else has to run."""

from __future__ import annotations

import io
import json
import logging
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.evaluation.gate import decide
from flywheel.flows.events import resource, tell
from flywheel.flows.iterations import begin, finish
from flywheel.flows.logs import LOGGER, log_to_stderr
from flywheel.flows.metrics import exposed
from flywheel.flows.summary import history_of, status_of
from flywheel.policies.registry import crown, rollback
from flywheel.trajectory import Trajectory

RATE = {"policy": "flat", "rate": 0.25, "low": 0.1, "high": 0.4}


@pytest.fixture
def turned(lake: Lake, smoke: Config, golden: list[Trajectory]) -> Lake:
    """A lake with one finished iteration and one that runs, two promotions and a rollback."""
    gate = decide([True, True], [False, True], alpha=0.05, power=0.8)
    lake.append(golden, "collect")
    begin(smoke, lake, 1)
    gate_row = {"challenger": "student-a", **asdict(gate), "sentence": gate.sentence}
    report = {"rates": [RATE], "gates": [gate_row], "seconds": {"collect": 2.0}}
    finish(lake, 1, {"name": "smoke", **report})
    crown(lake, "student-a", "promoted: it won", "gate-a")
    crown(lake, "student-b", "promoted: it won again", "gate-b")
    rollback(lake)
    begin(smoke, lake, 2)
    return lake


def test_history_tells_iterations_and_changes_of_the_champion(turned: Lake) -> None:
    told = history_of(turned)
    assert [(iteration["iteration"], iteration["finished"]) for iteration in told["iterations"]] == [
        (1, True),
        (2, False),
    ]
    assert told["iterations"][0]["rates"] == "flat 25.0%"
    assert told["iterations"][1]["began_under"] == "student-a"
    assert [change["champion"] for change in told["champion_changes"]] == ["student-a", "student-b", "student-a"]
    assert told["champion_changes"][-1]["why"] == "rollback of student-b"


def test_status_tells_what_runs_and_why_the_champion_is_champion(turned: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    told = status_of(turned)
    assert told["iterations_finished"] == [1]
    assert told["iteration_running"] == 2
    assert told["champion"] == "student-a"
    assert told["why"] == "rollback of student-b"
    assert told["served"] is None


def test_prometheus_reads_the_lake(turned: Lake, golden: list[Trajectory]) -> None:
    with exposed(turned, 0) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    assert f'flywheel_trajectories{{policy="expert",purpose="collect",route="waiting"}} {len(golden):.1f}' in lines
    assert 'flywheel_champion{policy_id="student-a"} 1.0' in lines
    assert 'flywheel_verified_rate{policy="flat"} 0.25' in lines
    assert 'flywheel_stage_seconds{stage="collect"} 2.0' in lines
    assert "flywheel_champion_changes 3.0" in lines
    assert "flywheel_up 1.0" in lines


def test_metrics_of_a_lake_that_went_away_say_so(turned: Lake) -> None:
    for file in Path(turned.root).glob("catalog.sqlite*"):
        file.unlink()
    turned.catalog.engine.dispose()
    with exposed(turned, 0) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert "flywheel_up 0.0" in answer.read().decode().splitlines()


@pytest.fixture
def quiet() -> Iterator[None]:
    yield
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)
    LOGGER.propagate = True


@pytest.mark.usefixtures("quiet")
def test_logs_are_json_lines_with_what_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_LOG", "json")
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    log_to_stderr()
    tell("mine", "gate.decided", promoted=True)
    line = json.loads(said.getvalue())
    assert (line["event"], line["flywheel"], line["promoted"], line["level"]) == ("gate.decided", "mine", True, "INFO")
    assert resource("mine") == "flywheel.mine"


@pytest.mark.usefixtures("quiet")
def test_logs_as_text_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_LOG", "")
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    log_to_stderr("text")
    tell("mine", "gate.decided", promoted=True)
    assert said.getvalue().endswith(" gate.decided flywheel=mine promoted=True\n")
