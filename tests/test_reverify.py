"""Re-verification: verdicts are appended, changes are shown one by one, and what they touch is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.formats import atif
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.versions import create
from flywheel.distill.stage import distill
from flywheel.environments.protocol import World
from flywheel.filters.calibration.reward_hacks import checker_touched
from flywheel.filters.curate import curate, route_counts
from flywheel.filters.reverify import reverify
from flywheel.filters.verifiers.integrity import Integrity
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
    assert {change.trajectory_id for change in found.changes} == {trajectory.trajectory_id for trajectory in golden[2:]}
    assert all(change.before and not change.after and change.route == "executor" for change in found.changes)
    assert all("detour" in change.reason for change in found.changes)
    assert (found.datasets, found.students) == (["good@v1"], [card.policy_id])
    assert route_counts(lake) == {"supervised": 2, "executor": len(golden) - 2}
    verdicts = lake.sql("select count(*) as n from verdicts where verifier = 'process'").to_pylist()
    assert verdicts == [{"n": 2 * len(golden) - 2}]
    assert lake.sql("select count(*) as n from trajectories where verified = 1", at=before).to_pylist() == [
        {"n": len(golden)}
    ]
    assert reverify(strict, lake, "process", since).changes == []
    late = {trajectory.trajectory_id for trajectory in golden[2:]}
    back = reverify(lax, lake, "process", since)
    assert {change.trajectory_id for change in back.changes} == late
    assert route_counts(lake) == {"supervised": len(golden)}
    again = reverify(strict, lake, "process", since)
    assert {(change.trajectory_id, change.route) for change in again.changes} == {(one, "executor") for one in late}
    assert route_counts(lake) == {"supervised": 2, "executor": len(golden) - 2}


def test_what_may_not_teach_does_not_come_back_by_another_verdict(
    lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    """An import longer than an episode may be, which a strict verifier had denied too."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(atif.write(golden[0], {})))
    import_files(lake, [path], "atif")
    short = f"environment.max_steps={golden[0].length - 1}"
    vouch = 'curate.vouch=["outcome"]'
    strict = load(ROOT / "configs" / "smoke.toml", [f"data_dir={lake.root}", STRICT, short, vouch])
    lax = load(ROOT / "configs" / "smoke.toml", [f"data_dir={lake.root}", LAX, short, vouch])
    curate(strict, lake)
    assert reverify(lax, lake, "process").changes
    assert route_counts(lake) == {"quarantine": 1}


def test_a_verifier_that_is_new_to_the_pipeline_can_deny_but_not_verify(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(config(lake, 'curate.verifiers=["outcome"]'), lake)
    wider = config(lake, 'curate.verifiers=["outcome", "integrity"]')
    assert reverify(wider, lake, "integrity").changes == []
    assert route_counts(lake) == {"supervised": len(golden)}
    found = reverify(config(lake, STRICT), lake, "process").changes
    assert {(one.before, one.after, one.route) for one in found} == {(None, False, "executor")}
    assert route_counts(lake) == {"executor": len(golden)}
    three = config(lake, LAX.replace('"outcome"]', '"outcome", "replay"]'))
    found = reverify(three, lake, "process").changes
    assert {(one.before, one.after, one.route) for one in found} == {(False, True, "")}
    assert route_counts(lake) == {"executor": len(golden)}


def test_a_cheat_that_is_seen_late_goes_into_quarantine(lake: Lake, world: World, golden: list[Trajectory]) -> None:
    lake.append([checker_touched(golden[0], golden[1], world.facts(golden[0].task))], "cheat")
    blind = 'curate.verifiers=[{ name = "integrity", arguments = { checker = "nobody says this" } }]'
    curate(config(lake, blind), lake)
    assert route_counts(lake) == {"supervised": 1}
    found = reverify(config(lake, 'curate.verifiers=["integrity"]'), lake, "integrity").changes
    assert [(one.before, one.after, one.route) for one in found] == [(True, False, "quarantine")]


def test_only_the_configs_own_tasks_are_asked_about(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(config(lake, LAX), lake)
    other = load(
        ROOT / "configs" / "smoke.toml", [f"data_dir={lake.root}", STRICT, "environment.parameters={numLocations=4}"]
    )
    assert reverify(other, lake, "process").judged == 0


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
    assert [change.reason for change in found.changes] == ["same version and arguments: not deterministic"]
    assert route_counts(lake) == {"supervised": 1}


def test_the_command(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(config(lake, LAX), lake)
    call = ["reverify", str(ROOT / "configs" / "smoke.toml"), "process", "--set", f"data_dir={lake.root}"]
    told = CliRunner().invoke(app, [*call, "--set", STRICT, "--json"])
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["changes"]) == len(golden)
