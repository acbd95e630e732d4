"""Self-play on a real environment: options and likelihoods are those of the rollout; rounds are students."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flywheel.agents.contexts.language import MarkerLanguage
from flywheel.agents.contexts.prompts import DONE, END, PAD, SPECIAL_TOKENS, Role
from flywheel.agents.contexts.tokenization import token_id
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.algorithms.decisions import (
    ADVANTAGE,
    BEHAVIOUR,
    OPTIONS,
    SUCCESS,
    DecisionRows,
    decision_logprobs,
    offered,
    open_options,
    with_column,
)
from flywheel.distill.algorithms.ppo import Clip, clip_metrics, ppo_loss
from flywheel.distill.algorithms.self_play import PURPOSE, play_round
from flywheel.distill.batching.examples import windows_of
from flywheel.distill.batching.packing import Targets
from flywheel.distill.data.rows import rows_of
from flywheel.distill.stage import distill
from flywheel.errors import TrainingError
from flywheel.filters.curate import curate
from flywheel.policies.models import load_part
from flywheel.policies.registry import policy_directory
from flywheel.trajectory import Trajectory

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
ROUNDS, TASKS = 2, range(6000, 6006)
GRPO = [
    "train.finetune={algorithm='grpo', epochs={planner=2, executor=2, flat=2}, rounds=2, tasks=3, attempts=3}",
    "train.finetune.reward=score",
    "train.trackers=[]",
]
PPO = [
    "train.finetune.algorithm=ppo",
    "train.finetune.epochs={planner=2, executor=2, flat=2}",
    f"train.finetune.rounds={ROUNDS}",
    f"train.finetune.tasks={len(TASKS)}",
    "train.trackers=[]",
]


def config(lake: Lake, *sets: str) -> Config:
    return load(SMOKE, [f"data_dir={lake.root}", *sets])


@pytest.fixture
def filled(smoke: Config, lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append(golden, "episodes")
    curate(smoke, lake)
    return lake


def test_the_open_options_of_a_word_are_the_branches_there() -> None:
    options = [[1, 2, 9], [1, 3, 9], [4, 9]]
    assert open_options(options, [1, 3, 9]) == [[1, 4], [2, 3], [9]]
    assert open_options(options, [4, 9]) == [[1, 4], [9]]


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_what_a_row_recalls_is_what_the_rollout_stored(filled: Lake, kind: str) -> None:
    """Log-probabilities among the options, recomputed from packed rows, are those that were written while acting."""
    settings = config(filled)
    card = distill(settings, filled, kind, 1)
    corpus = play_round(settings, filled, card.policy_id, TASKS)
    role = Role.FLAT if kind == "flat" else Role.EXECUTOR
    model, tokenizer = load_part(policy_directory(filled, card.policy_id) / role)
    tokens, pad = MarkerLanguage(tokenizer), token_id(tokenizer, PAD)
    never = [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS if marker != END]
    decisions = DecisionRows(lambda level, trajectory, step: 0.0, {}, card.decoding.max_repeats, 99)
    rows = rows_of(settings, corpus, role, 1)
    compared = 0
    for one, segments in corpus.read(rows.ids):
        for window in windows_of(one, segments, rows.limits, role):
            row = decisions.row(
                one.trajectory_id, window, role, offered(one, segments, card.decoding.max_repeats), tokens
            )
            (full,) = with_column(model, 4096, pad, never, [row])
            cursor = 0
            for piece in window.pieces:
                span = slice(cursor, cursor + len(tokens.piece(piece)))
                cursor = span.stop
                if piece.target and piece.marker != DONE:
                    stored = one.steps[piece.decision].logprobs
                    assert stored is not None
                    assert full.columns[BEHAVIOUR][span].tolist() == pytest.approx(list(stored), abs=2e-4)
                    compared += len(stored)
    assert compared > 100
    assert corpus.routes.keys() <= set(
        filled.sql(f"select trajectory_id from trajectories where purpose = '{PURPOSE}'")["trajectory_id"].to_pylist()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
def test_rounds_are_students_whose_parent_played_them(filled: Lake, kind: str) -> None:
    settings = config(filled, *PPO)
    card = distill(settings, filled, kind, 1)
    first = filled.sql(f"select parent_policy_id from policies where policy_id = '{card.policy_id}'").to_pylist()
    played = filled.sql(
        f"""select distinct t.policy_id, t.purpose, t.split from lineage l join trajectories t using (trajectory_id)
            where l.policy_id = '{card.policy_id}'"""
    ).to_pylist()
    assert played == [{"policy_id": first[0]["parent_policy_id"], "purpose": PURPOSE, "split": "train"}]
    assert len(filled.sql("select 1 from policies")) == 1 + ROUNDS
    for role in ("flat",) if kind == "flat" else ("planner", "executor"):
        assert card.metrics[f"{role}_first_kl"] == pytest.approx(0, abs=0.05)
        assert card.metrics[f"{role}_last_entropy"] > 0
    snapshot = filled.snapshot()
    assert distill(settings, filled, kind, 1) == card
    assert filled.snapshot() == snapshot


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("flat", []),
        pytest.param(
            "flat",
            ["train.finetune.average=token", "train.finetune.scale_by_std=false", "train.finetune.kl_weight=0.1"],
            marks=pytest.mark.slow,
        ),
        pytest.param("hierarchical", [], marks=pytest.mark.slow),
    ],
)
def test_attempts_at_one_task_teach_by_their_differences(filled: Lake, kind: str, options: list[str]) -> None:
    settings = config(filled, *GRPO, *options)
    card = distill(settings, filled, kind, 1)
    taught = filled.sql(
        f"""select t.task_id, count(*) as attempts, count(distinct t.score) as outcomes, any_value(t.purpose) as purpose
            from lineage l join trajectories t using (trajectory_id)
            where l.policy_id = '{card.policy_id}' group by all"""
    ).to_pylist()
    assert taught
    assert all(row["purpose"] == PURPOSE and row["outcomes"] > 1 and row["attempts"] <= 3 for row in taught)
    assert len(filled.sql("select 1 from policies")) == 1 + ROUNDS
    assert filled.sql("select 1 from credits").num_rows == 0  # there is no critic
    role = "flat" if kind == "flat" else "executor"
    assert card.metrics[f"{role}_first_kl"] == pytest.approx(0, abs=0.05)
    snapshot = filled.snapshot()
    assert distill(settings, filled, kind, 1) == card
    assert filled.snapshot() == snapshot


def test_attempts_that_all_earned_the_same_are_told(filled: Lake) -> None:
    settings = config(filled, *GRPO, "train.finetune.tasks=1", "environment.max_steps=1")
    with pytest.raises(TrainingError, match=r"all attempts at each task of round 1 earned the same.*finetune.attempts"):
        distill(settings, filled, "flat", 1)


def test_likelihood_is_among_the_options_alone() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    columns = {OPTIONS: torch.tensor([[1, 2, -1], [0, 3, 5]]), ADVANTAGE: torch.tensor([1.0, -1.0])}
    columns |= {SUCCESS: torch.zeros(2), BEHAVIOUR: torch.zeros(2)}
    targets = Targets(torch.tensor([2, 0]), torch.ones(2), torch.zeros(2), columns)
    logprob, entropy = decision_logprobs(logits, targets)
    assert logprob[0] == pytest.approx(float(logits[0, [1, 2]].log_softmax(-1)[1]))
    assert logprob[1] == pytest.approx(float(logits[1, [0, 3, 5]].log_softmax(-1)[0]))
    shares = logits[0, [1, 2]].softmax(-1)
    assert entropy[0] == pytest.approx(float(-(shares * shares.log()).sum()))
    unlisted = replace(targets, columns={**columns, OPTIONS: torch.full((2, 1), -1)})
    logprob, _ = decision_logprobs(logits, unlisted, forbidden=[4, 5])
    assert logprob[0] == pytest.approx(float(logits[0, :4].log_softmax(-1)[2]))


def test_what_is_watched_is_nothing_before_the_policy_moves() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    columns = {OPTIONS: torch.full((3, 1), -1), ADVANTAGE: torch.tensor([1.0, -1.0, 0.5]), SUCCESS: torch.zeros(3)}
    blank = Targets(torch.tensor([2, 0, 1]), torch.ones(3), torch.zeros(3), columns)
    behaviour = decision_logprobs(logits.detach(), blank)[0]
    targets = replace(blank, columns={**columns, BEHAVIOUR: behaviour})
    metrics = clip_metrics(logits.detach(), targets, Clip(), [])
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(metrics["clipped"]) == 0
    ppo_loss(decision_logprobs(logits, targets)[0], targets, Clip(), 0.0).backward()
    assert logits.grad is not None
    expected = -np.array([1.0, -1.0, 0.5])[:, None] * (np.eye(6)[[2, 0, 1]] - logits.detach().softmax(-1).numpy())
    assert logits.grad.numpy() == pytest.approx(expected, abs=1e-5)
