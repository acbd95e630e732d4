"""What a verifier's word is worth: closed forms, calibration on labelled episodes, and the bar that it must clear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import ConfigError
from flywheel.filters.calibration.agreement import agreement, reliability
from flywheel.filters.calibration.calibrate import check
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
FEW = ["curate.calibration_tasks=6"]


def config(folder: Path, *sets: str) -> Config:
    return load(ROOT / "configs" / "smoke.toml", [f"data_dir={folder}", *FEW, *sets])


def test_agreement_has_its_closed_forms() -> None:
    """Cohen's own example, table 1 rearranged: 45 both yes, 15 and 25 apart, 15 both no: kappa is 0.1304."""
    truth = np.array([True] * 45 + [True] * 15 + [False] * 25 + [False] * 15)
    passed = np.array([True] * 45 + [False] * 15 + [True] * 25 + [False] * 15)
    found = agreement(truth, passed)
    assert (found.precision, found.recall) == (45 / 70, 45 / 60)
    assert found.kappa == pytest.approx(0.1304, abs=1e-4)


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(pairs, st.randoms(use_true_random=False))
def test_agreement_is_bounded_symmetric_and_blind_to_order(rows: list[tuple[bool, bool]], chance: Any) -> None:
    truth, passed = np.array(rows).T
    found = agreement(truth, passed)
    assert 0 <= found.precision <= 1
    assert -1 - 1e-9 <= found.kappa <= 1
    assert found.kappa == pytest.approx(agreement(passed, truth).kappa)
    assert agreement(truth, truth).kappa == 1
    order = chance.sample(range(len(rows)), len(rows))
    assert agreement(truth[order], passed[order]) == found


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60))
def test_reliability_bins_lose_nobody(rows: list[tuple[bool, float]]) -> None:
    truth, predicted = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    bins = reliability(truth, predicted)
    assert sum(one.count for one in bins) == len(rows)
    assert sum(one.observed * one.count for one in bins) == pytest.approx(truth.sum())
    assert sum(one.predicted * one.count for one in bins) == pytest.approx(predicted.sum())


def test_verifiers_are_held_against_the_truth_and_the_lake_remembers(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with Lake.of(settings, create=True) as lake:
        found = {verdict.verifier: verdict for verdict in check(settings, lake)}
        assert list(found) == ["privileged", "integrity", "replay", "ensemble"]
        assert all(all(one.accepted.values()) for one in found.values())
        assert all(one.agreement.recall == 1 and one.honest_flagged == 0 for one in found.values())
        together = found["ensemble"]
        assert together.agreement.precision >= max(one.agreement.precision for one in found.values())
        assert together.cheats_caught >= 0.95
        assert found["integrity"].caught["checker touched"] == 1
        assert found["replay"].caught["teleported step"] == 1
        kept = lake.sql("select verifier, kappa, result from calibrations order by created_at").to_pylist()
        assert [row["verifier"] for row in kept] == list(found)
        assert json.loads(kept[-1]["result"])["caught"] == together.caught
        check(settings, lake, ["integrity"])
        assert lake.sql("select count(*) as n from calibrations").to_pylist() == [{"n": 4}]


def test_a_verifier_below_its_bar_gates_nothing(tmp_path: Path, golden: list[Trajectory]) -> None:
    barred = '["replay", { name = "outcome", bar = { precision = 0.999 } }]'
    settings = config(tmp_path, f"curate.verifiers={barred}")
    with Lake.of(settings, create=True) as lake:
        lake.append(golden, "golden")
        with pytest.raises(ConfigError, match="bar and no calibration; run: flywheel verifiers check"):
            curate(settings, lake)
        check(settings, lake)
        with pytest.raises(ConfigError, match=r"'outcome' is below its bar: precision 0\.\d+ < 0.999"):
            curate(settings, lake)
        assert lake.sql("select count(*) as n from routes").to_pylist() == [{"n": 0}]
        low = config(tmp_path, 'curate.verifiers=["replay", { name = "outcome", bar = { precision = 0.5 } }]')
        assert curate(low, lake) == {"supervised": len(golden)}


def test_nothing_is_measured_without_golden_episodes(tmp_path: Path) -> None:
    settings = config(tmp_path, "environment.max_steps=3")
    with (
        Lake.of(settings, create=True) as lake,
        pytest.raises(ConfigError, match="the expert solves 0 of 6 calibration tasks"),
    ):
        check(settings, lake)


def test_the_command_prints_a_table_and_draws_the_reliability(tmp_path: Path) -> None:
    runner = CliRunner()
    call = ["verifiers", "check", str(ROOT / "configs" / "smoke.toml"), "--set", f"data_dir={tmp_path}"]
    call += ["--set", FEW[0], "--only", "integrity"]
    dry = runner.invoke(app, [*call, "--dry-run", "--json"])
    assert json.loads(dry.stdout) == {"verifiers": ["integrity"], "tasks": 6}
    assert not list(tmp_path.iterdir())
    told = runner.invoke(app, [*call, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)[0]["verifier"] == "integrity"
    assert (tmp_path / "reports" / "verifiers.png").stat().st_size > 10_000
    assert "ensemble" in runner.invoke(app, ["verifiers", "list"]).stdout
