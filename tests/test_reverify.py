"""Re-verification: verdicts are appended, changes are shown one by one, and what they touch is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.cli import app
from flywheel.config import Config, load
from flywheel.datasets.lake import Lake
from flywheel.datasets.pins import create
from flywheel.distill.stage import distill
from flywheel.filters.curate import curate, route_counts
from flywheel.filters.integrity import Integrity
from flywheel.filters.reverify import reverify
from flywheel.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
LAX = 'curate.verifiers=[{ name = "process", arguments = { max_detour = 3.0 } }, "outcome"]'
STRICT = 'curate.verifiers=[{ name = "process", arguments = { max_detour = 0.5 } }, "outcome"]'


def config(lake: Lake, pipeline: str) -> Config:
    return load(ROOT / "configs" / "smoke.toml", [f"data_dir={lake.root}", pipeline])


def test_new_arguments_change_verdicts_routes_and_what_is_told(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:2], "early")
    since = lake.snapshot()
    lake.append(golden[2:], "late")
    lax, strict = config(lake, LAX), config(lake, STRICT)
    curate(lax, lake)
    create(lake, "good", "verified = 1")
    card = distill(lax, lake, "flat", 1)
    before = lake.snapshot()
    foreseen = reverify(strict, lake, "process", since, dry_run=True)
    assert lake.snapshot() == before
    found = reverify(strict, lake, "process", since)
    assert found == foreseen
    assert found.judged == len(golden) - 2
    assert {one.trajectory_id for one in found.changes} == {one.trajectory_id for one in golden[2:]}
    assert all(one.before and not one.after and one.route == "executor" for one in found.changes)
    assert all("detour" in one.reason for one in found.changes)
    assert (found.pins, found.students) == (["good@v1"], [card.policy_id])
    assert route_counts(lake) == {"supervised": 2, "executor": len(golden) - 2}
    verdicts = lake.sql("select count(*) as n from verdicts where verifier = 'process'").to_pylist()
    assert verdicts == [{"n": 2 * len(golden) - 2}]
    assert lake.sql("select count(*) as n from trajectories where verified = 1", at=before).to_pylist() == [
        {"n": len(golden)}
    ]
    assert reverify(strict, lake, "process", since).changes == []
    back = reverify(lax, lake, "process", since)
    assert {one.trajectory_id for one in back.changes} == {one.trajectory_id for one in golden[2:]}


def test_a_verifier_that_never_gated_reroutes_nothing(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(smoke, lake)
    found = reverify(smoke, lake, "outcome")
    assert (found.judged, found.changes) == (len(golden), [])
    assert lake.sql("select count(*) as n from verdicts where verifier = 'outcome'").to_pylist() == [{"n": len(golden)}]


def test_a_changed_word_under_the_same_version_is_told_and_not_kept(
    smoke: Config, lake: Lake, golden: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.append(golden[:1], "one")
    curate(smoke, lake)
    honest = Integrity.verify

    def moody(self: Integrity, batch: object) -> list[object]:
        return [replace(said, passed=False) for said in honest(self, batch)]  # type: ignore[arg-type]

    monkeypatch.setattr(Integrity, "verify", moody)
    found = reverify(smoke, lake, "integrity")
    assert [one.reason for one in found.changes] == ["same version and arguments: not deterministic"]
    assert route_counts(lake) == {"supervised": 1}


def test_the_command(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(config(lake, LAX), lake)
    call = ["reverify", str(ROOT / "configs" / "smoke.toml"), "process", "--set", f"data_dir={lake.root}"]
    told = CliRunner().invoke(app, [*call, "--set", STRICT, "--json"])
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["changes"]) == len(golden)
