"""Training curves: TensorBoard's files hold what the run told; other trackers hear the same, a missing one is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.distill.training.tracking import tracked
from flywheel.errors import PrerequisiteError
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"


def test_curves_of_every_role_lie_beside_the_lake(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "episodes")
    curate(smoke, lake)
    losses: dict[str, list[float]] = {}
    card = distill(
        load(SMOKE, [f"data_dir={lake.root}"]),
        lake,
        "hierarchical",
        1,
        lambda role, update, total, loss: losses.setdefault(role, []).append(loss),
    )
    for role, told in losses.items():
        found = EventAccumulator(str(lake.root / "tracking" / card.policy_id / role))
        found.Reload()
        assert set(found.Tags()["scalars"]) == {"loss", "learning_rate", "gradient_norm", "tokens_per_second"}
        points = found.Scalars("loss")
        assert points[-1].step == len(told)
        assert [point.value for point in points] == pytest.approx([told[point.step - 1] for point in points])


def test_without_trackers_nothing_is_written(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "episodes")
    curate(smoke, lake)
    distill(load(SMOKE, [f"data_dir={lake.root}", "train.trackers=[]"]), lake, "flat", 1)
    assert not (lake.root / "tracking").exists()


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(PrerequisiteError, match=r"wandb is not installed: pip install 'trajectory-flywheel\[wandb\]'"),
        tracked(["wandb"], "project", "run", tmp_path),
    ):
        raise AssertionError


def test_mlflow_hears_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with tracked(["mlflow"], "project", "student/flat", tmp_path) as log:
        log(1, {"loss": 0.5})
        log(11, {"loss": 0.25})
    (run,) = mlflow.search_runs(experiment_names=["project"], output_format="list")
    assert run.data.metrics == {"loss": 0.25}
    assert run.info.run_name == "student/flat"


def test_weights_and_biases_hears_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tracked(["wandb"], "project", "student/flat", tmp_path) as log:
        log(1, {"loss": 0.5})
    assert list(tmp_path.rglob("*.wandb"))
