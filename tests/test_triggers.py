"""Triggers: what starts a distillation by itself, on a real Prefect server; and who is told of what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.versions import create, find
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.gate import decide
from flywheel.flows.events import tell_of_dataset
from flywheel.flows.triggers import drops_between, untaught
from flywheel.trajectory import Trajectory
from tests.served import FLYWHEEL, SMOKE, run, serving


def _decision(ours: list[bool], theirs: list[bool], *, promoted: bool) -> GateDecision:

    found = decide(ours, theirs, alpha=0.05, power=0.8, slices={"all": np.ones(len(ours), bool)})
    return replace(found, promoted=promoted)


def test_a_drop_is_of_whoever_is_in_force() -> None:
    good, bad = [True] * 18 + [False] * 2, [True] * 4 + [False] * 16
    before = _decision(good, bad, promoted=True)
    stayed = _decision(bad, bad, promoted=False)
    drop = drops_between(before, stayed, 0.3)[0]
    assert (drop.slice, drop.before, drop.after) == ("all", 0.9, 0.2)
    assert drop.p_value == pytest.approx(hypergeom.sf(17, 40, 22, 20))
    assert drops_between(before, _decision(good, bad, promoted=True), 0.3) == []
    assert drops_between(before, stayed, 0.8) == []
    assert drops_between(before, stayed, 0.0) == []


def test_a_drop_within_chance_is_none() -> None:
    few, fewer = [True, True, False], [True, False, False]
    assert drops_between(_decision(few, few, promoted=True), _decision(fewer, fewer, promoted=True), 0.1) == []


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.booleans(), min_size=1, max_size=30))
def test_nothing_drops_that_does_not_fall(one: list[bool], other: list[bool]) -> None:
    found = drops_between(_decision(one, one, promoted=True), _decision(other, other, promoted=True), 0.01)
    assert all(drop.before > drop.after for drop in found)


def test_a_dataset_is_made_though_the_server_that_should_hear_of_it_is_away(
    lake: Lake, golden: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    lake.append(golden, "collect")
    dataset = create(lake, "all", "true")
    tell_of_dataset(lake, dataset)
    assert find(lake, "all@v1") == dataset


DROPPED = """
from flywheel.flows.events import DROPPED, tell
from flywheel.flows.api import reached_api
from pathlib import Path
with reached_api(Path("."), 0):
    tell("smoke", DROPPED, slice="long", before=0.8, after=0.4, p_value=0.01)
"""


@pytest.mark.slow
def test_pause_trigger_and_what_starts_a_distillation(tmp_path: Path) -> None:
    """By hand, by a dataset's new version, by new verified trajectories, and by a slice that dropped."""
    data = tmp_path / "data"
    triggers = (
        "triggers.dataset='easy'",
        "triggers.new_verified=6",
        "triggers.slice_drop=0.2",
        "triggers.kind='flat'",
    )
    with serving(data, "serve.interval=3600", *triggers) as served:
        again = subprocess.run(
            [FLYWHEEL, "serve", str(SMOKE), "--set", f"data_dir={data}", "--set", "serve.port=19999"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 2
        assert "is served already" in again.stderr
        assert served.told("trigger", "--wait")["state"] == "Completed"
        assert served.told("pause")["paused"] is True
        assert served.stop() == 0
        served.start()
        assert served.status()["served"]["paused"] is True
        assert served.told("resume")["paused"] is False
        assert served.status()["iterations_finished"] == [1]
        lake = Lake(data)
        assert untaught(lake) == 0

        teach = "verified = 1 and split = 'train' and route = 'supervised'"
        for name in ("other", "easy"):
            run("dataset", "create", name, "--where", teach, "--data-dir", str(data), "--json")
        served.until(lambda: _students(lake, 0) == ["flat"])
        card = json.loads(lake.sql("select card from policies where iteration = 0").to_pylist()[0]["card"])
        assert card["condition"] == "dataset easy@v1"

        run("collect", str(SMOKE), "--iteration", "2", "--set", f"data_dir={data}", "--json")
        run("curate", str(SMOKE), "--set", f"data_dir={data}", "--set", "triggers.new_verified=6", "--json")
        assert untaught(lake) >= 6
        served.until(lambda: _students(lake, 2) == ["flat"])
        done = len(served.events("distill.finished"))
        env = {**os.environ, "PREFECT_API_URL": (data / "prefect" / "address").read_text()}
        subprocess.run([sys.executable, "-c", DROPPED], check=True, env=env)
        served.until(lambda: len(served.events("distill.finished")) > done)
        assert untaught(lake) == 0


def _students(lake: Lake, iteration: int) -> list[str]:
    found = lake.sql(f"select name from policies where iteration = {iteration} order by created_at")
    return [str(one) for one in found["name"].to_pylist()]
