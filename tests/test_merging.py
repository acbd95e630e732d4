"""Merging: specialists of one ancestor become one student; strangers are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.errors import PolicyError
from flywheel.evaluation.evaluate import evaluate
from flywheel.filters.curate import curate
from flywheel.policies.card import PolicyCard
from flywheel.policies.merge import merge
from flywheel.policies.registry import policy_directory
from flywheel.trajectory import Split, Trajectory

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"


@pytest.fixture
def specialists(smoke: Config, lake: Lake, golden: list[Trajectory]) -> list[PolicyCard]:
    """Two second phases of one cloned student, and that student."""
    lake.append(golden, "golden")
    curate(smoke, lake)
    phases = [["train.finetune.algorithm=bc", f"train.finetune.learning_rate={rate}"] for rate in (1e-3, 1e-2)]
    return [*(distill(load(SMOKE, own), lake, "flat", 1) for own in phases), distill(smoke, lake, "flat", 1)]


def weights(lake: Lake, card: PolicyCard) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(
        policy_directory(lake, card.policy_id) / "flat"
    ).state_dict()
    return found


def test_parameters_are_interpolated_and_the_student_plays(
    smoke: Config, lake: Lake, specialists: list[PolicyCard]
) -> None:
    one, other, ancestor = specialists
    card = merge(lake, [one.policy_id, other.policy_id], [0.25, 0.75])
    assert card == merge(lake, [one.policy_id, other.policy_id], [0.25, 0.75])
    assert card.parent_policy_id == ancestor.policy_id
    ours, theirs, found = (weights(lake, each) for each in (one, other, card))
    for name in found:
        assert torch.allclose(found[name], 0.25 * ours[name] + 0.75 * theirs[name], atol=1e-6)
    lineage = lake.sql(f"select count(*) as n from lineage where policy_id = '{card.policy_id}'").to_pylist()
    assert lineage == [{"n": card.trajectories}]
    assert evaluate(smoke, lake, card.policy_id, Split.DEV, 1).tasks == smoke.evaluate.dev_tasks


def test_what_does_not_correspond_is_refused(smoke: Config, lake: Lake, specialists: list[PolicyCard]) -> None:
    one, other, _ = specialists
    stranger = distill(load(SMOKE, ["seed=5"]), lake, "flat", 1)
    levels = distill(smoke, lake, "hierarchical", 1)
    for names, shares, message in (
        ([one.policy_id, stranger.policy_id], [], "no common ancestor|way of acting"),
        ([one.policy_id, levels.policy_id], [], "of one kind"),
        ([one.policy_id, one.policy_id], [], "two different students"),
        ([one.policy_id, other.policy_id], [0.5, 0.6], "sum to 1"),
        ([one.policy_id, other.policy_id], [1.5, -0.5], "sum to 1"),
    ):
        with pytest.raises(PolicyError, match=message):
            merge(lake, names, shares)


def test_the_command(lake: Lake, specialists: list[PolicyCard]) -> None:
    names = [specialist.policy_id for specialist in specialists[:2]]
    told = CliRunner().invoke(app, ["merge", *names, "--data-dir", str(lake.root), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["ancestor"] == specialists[2].policy_id
