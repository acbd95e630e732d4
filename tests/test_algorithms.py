"""Algorithms: closed forms, and each moves a tiny student to the optimum that its paper promises."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from flywheel.config.train import TrainConfig
from flywheel.distill.algorithms.awr import advantage_weights
from flywheel.distill.algorithms.bc import bc_loss
from flywheel.distill.algorithms.decisions import ADVANTAGE, BEHAVIOUR, REFERENCE, SUCCESS, entropy
from flywheel.distill.algorithms.dpo import dpo_loss
from flywheel.distill.algorithms.grpo import group_advantages, grpo_loss
from flywheel.distill.algorithms.kd import kd_loss, outcomes
from flywheel.distill.algorithms.pairs import PAIR, SIDE
from flywheel.distill.algorithms.ppo import Clip, ppo_loss
from flywheel.distill.algorithms.teacher_logprobs import TOP_IDS, TOP_LOGPROBS
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import Targets
from flywheel.distill.training.loop import train
from flywheel.errors import TrainingError

ASK, GOOD, BAD, OTHER = 1, 2, 3, 4
VOCABULARY = 8
SETTINGS = TrainConfig(learning_rate=0.02, batch_tokens=64, weight_decay=0.0, schedule="wsd", warmup=0.0)


def targets(next_N: list[int], weight: list[float] | None = None, **columns: object) -> Targets:
    return Targets(
        torch.tensor(next_N),
        torch.tensor(weight or [1.0] * len(next_N)),
        torch.arange(len(next_N)),
        {name: torch.as_tensor(column) for name, column in columns.items()},
    )


def student() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=16,
        )
    )


def answer_shares(model: PreTrainedModel) -> Tensor:
    """(V,): what the student answers to ASK."""
    with torch.no_grad():
        probabilities: Tensor = model(torch.tensor([[ASK]])).logits[0, -1].softmax(-1)
    return probabilities


def taught(
    examples: list[Example], loss_fn: Callable[[Tensor, Targets], Tensor], folder: Path, epochs: int = 40
) -> PreTrainedModel:
    model = student()
    train(model, [examples] * epochs, SETTINGS, seed=0, pad=0, checkpoint=folder, loss_fn=loss_fn)
    return model


def answer(token: int, weight: float = 1.0, group: int = -1, **columns: object) -> Example:
    """ASK, answered; columns are given for the answer alone."""
    arrays = {name: np.stack([np.zeros_like(column), column]) for name, column in columns.items()}
    return Example(np.array([ASK, token], np.int32), np.array([0, weight], np.float32), arrays, group)


def test_cloning_is_the_weighted_likelihood() -> None:
    logits = torch.randn(3, VOCABULARY)
    found = bc_loss(logits, targets([1, 2, 3], [1.0, 0.5, 2.0]))
    logprobs = logits.log_softmax(-1)
    assert float(found) == pytest.approx(-float(logprobs[0, 1] + 0.5 * logprobs[1, 2] + 2 * logprobs[2, 3]), rel=1e-5)


@given(st.lists(st.floats(-9, 50), min_size=1, max_size=30), st.floats(0.5, 10))
def test_better_decisions_weigh_more_and_none_too_much(advantages: list[float], beta: float) -> None:
    advantage = np.sort(np.array(advantages))
    weight = advantage_weights(advantage, beta, 20.0)
    assert np.all(np.diff(weight) >= 0)
    assert weight.mean() == pytest.approx(1)
    raw = np.minimum(np.exp(np.minimum(advantage / beta, 10.0)), 20.0)
    assert weight == pytest.approx(raw / raw.mean())


def test_regression_ends_where_its_paper_says(tmp_path: Path) -> None:
    """π ∝ π_data exp(A/β): equal data, advantages 1 and −1, β = 2, so odds of e."""
    weights = advantage_weights(np.array([1.0, -1.0] * 8), 2.0, 20.0)
    examples = [answer(token, weight) for token, weight in zip([GOOD, BAD] * 8, weights.tolist(), strict=True)]
    found = answer_shares(taught(examples, bc_loss, tmp_path))
    assert float(found[GOOD] / found[BAD]) == pytest.approx(np.e, rel=0.1)


@given(st.lists(st.floats(-4, 4), min_size=VOCABULARY, max_size=VOCABULARY), st.integers(1, VOCABULARY))
def test_imitating_oneself_costs_nothing(logits: list[float], k: int) -> None:
    logits_NV = torch.tensor([logits])
    top = logits_NV.log_softmax(-1).topk(k)
    for reverse in (False, True):
        found = kd_loss(logits_NV, targets([0], **{TOP_IDS: top.indices, TOP_LOGPROBS: top.values}), reverse=reverse)
        assert float(found) == pytest.approx(0, abs=1e-4)


def test_imitation_with_all_tokens_is_the_divergence_and_the_tail_is_one_outcome() -> None:
    mine, theirs = torch.randn(2, VOCABULARY), torch.randn(2, VOCABULARY).log_softmax(-1)
    top = theirs.topk(VOCABULARY)
    whole = kd_loss(mine, targets([0, 0], **{TOP_IDS: top.indices, TOP_LOGPROBS: top.values}))
    student_NV = mine.log_softmax(-1)
    assert float(whole) == pytest.approx(float((theirs.exp() * (theirs - student_NV)).sum()), rel=1e-4)
    backwards = kd_loss(mine, targets([0, 0], **{TOP_IDS: top.indices, TOP_LOGPROBS: top.values}), reverse=True)
    assert float(backwards) == pytest.approx(float((student_NV.exp() * (student_NV - theirs)).sum()), rel=1e-4)
    few = theirs.topk(2)
    one, other = outcomes(mine, few.indices, few.values)
    assert one.exp().sum(-1) == pytest.approx(torch.ones(2), abs=1e-5)
    assert other.exp().sum(-1) == pytest.approx(torch.ones(2), abs=1e-5)


def test_imitation_teaches_what_the_answers_alone_do_not_say(tmp_path: Path) -> None:
    """All answers are GOOD; the teacher gave BAD a third, and everything else together a tenth."""
    told = np.array([0.9 * 2 / 3, 0.9 / 3])
    columns = {TOP_IDS: np.array([GOOD, BAD], np.int32), TOP_LOGPROBS: np.log(told).astype(np.float32)}
    found = answer_shares(taught([answer(GOOD, **columns) for _ in range(8)], kd_loss, tmp_path))
    assert found[[GOOD, BAD]].tolist() == pytest.approx(told.tolist(), abs=0.03)


def test_preference_is_the_papers_loss() -> None:
    logits = torch.randn(3, VOCABULARY)
    columns = {PAIR: [5, 5, 5], SIDE: [1.0, 1.0, -1.0], REFERENCE: [-1.0, -2.0, -0.5]}
    logprobs = logits.log_softmax(-1)
    margin = (logprobs[0, 1] + 1) + (logprobs[1, 2] + 2) - (logprobs[2, 3] + 0.5)
    expected = -torch.nn.functional.logsigmoid(0.3 * margin)
    assert float(dpo_loss(logits, targets([1, 2, 3], **columns), beta=0.3)) == pytest.approx(float(expected), rel=1e-5)


def test_preference_widens_the_margin_of_each_pair(tmp_path: Path) -> None:
    before = answer_shares(student()).log()
    pairs = []
    for number in range(4):
        for token, side in ((GOOD, 1.0), (BAD, -1.0)):
            columns = {PAIR: np.int64(number), SIDE: np.float32(side), REFERENCE: np.float32(before[token])}
            pairs.append(answer(token, 0.5, number, **columns))
    after = answer_shares(taught(pairs, partial(dpo_loss, beta=0.5), tmp_path, epochs=5)).log()
    assert (after[GOOD] - after[BAD]) - (before[GOOD] - before[BAD]) > 1


def test_proximal_is_the_policy_gradient_until_it_clips() -> None:
    logits = torch.zeros(1, VOCABULARY, requires_grad=True)
    logprob = logits.log_softmax(-1)[:, GOOD]
    columns = {ADVANTAGE: [2.0], BEHAVIOUR: logprob.detach(), SUCCESS: [0.0]}
    ppo_loss(logprob, targets([GOOD], **columns), Clip()).backward()
    expected = -2.0 * (torch.eye(VOCABULARY)[GOOD] - 1 / VOCABULARY)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    for advantage, behind, moves in ((1.0, 0.2, True), (1.0, 0.3, False), (-1.0, -0.1, True), (-1.0, -0.3, False)):
        logits.grad = None
        columns = {ADVANTAGE: [advantage], BEHAVIOUR: logprob.detach() - behind, SUCCESS: [0.0]}
        ppo_loss(logits.log_softmax(-1)[:, GOOD], targets([GOOD], **columns), Clip()).backward()
        assert bool((logits.grad != 0).any()) == moves


def test_proximal_finds_the_better_arm_and_likelihood_of_successes_helps(tmp_path: Path) -> None:
    """A bandit, off policy by one version: GOOD earned, BAD and OTHER did not."""
    before = answer_shares(student()).log()
    rows = []
    for token, advantage in ((GOOD, 1.0), (BAD, -0.5), (OTHER, -0.5)):
        columns = {
            ADVANTAGE: np.float32(advantage),
            BEHAVIOUR: np.float32(before[token]),
            SUCCESS: np.float32(token == GOOD),
        }
        rows.append(answer(token, **columns))

    def loss_fn(logits_NV: Tensor, batch: Targets, success_weight: float) -> Tensor:
        logprob_N = logits_NV.log_softmax(-1).gather(-1, batch.next_N[:, None])[:, 0]
        return ppo_loss(logprob_N, batch, Clip(), success_weight)

    plain = answer_shares(taught(rows * 4, partial(loss_fn, success_weight=0.0), tmp_path / "plain", epochs=6))
    helped = answer_shares(taught(rows * 4, partial(loss_fn, success_weight=1.0), tmp_path / "helped", epochs=6))
    assert plain[GOOD] > before[GOOD].exp() * 1.2
    assert plain[BAD] < before[BAD].exp()
    assert helped[GOOD] > plain[GOOD]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=24), st.booleans())
def test_attempts_are_each_others_baseline(attempts: list[tuple[str, float]], scale: bool) -> None:
    tasks, rewards = [task for task, _ in attempts], np.array([reward for _, reward in attempts])
    advantage = group_advantages(rewards, tasks, scale_by_std=scale)
    for task in set(tasks):
        mine = np.array([other == task for other in tasks])
        assert advantage[mine].sum() == pytest.approx(0, abs=1e-6)
        assert np.all(np.diff(advantage[mine][np.argsort(rewards[mine])]) >= -1e-9)
        if not scale:
            assert advantage[mine] == pytest.approx(rewards[mine] - rewards[mine].mean())


@given(st.integers(2, 32), st.data())
def test_groups_of_successes_and_failures_have_their_closed_form(count: int, data: st.DataObject) -> None:
    """k of n succeed: (1 − p) / s and −p / s with s² = n p (1 − p) / (n − 1)."""
    solved = data.draw(st.integers(0, count))
    advantage = group_advantages(np.repeat([1.0, 0.0], [solved, count - solved]), ["task"] * count)
    share = solved / count
    deviation = np.sqrt(count * share * (1 - share) / (count - 1))
    expected = np.repeat([1 - share, -share], [solved, count - solved]) / deviation if deviation else np.zeros(count)
    assert advantage == pytest.approx(expected, rel=1e-4)


def test_grpo_is_the_policy_gradient_and_clips_higher_above() -> None:
    logits = torch.zeros(1, VOCABULARY, requires_grad=True)
    logprob = logits.log_softmax(-1)[:, GOOD]
    columns = {ADVANTAGE: [2.0], BEHAVIOUR: logprob.detach(), REFERENCE: logprob.detach()}
    grpo_loss(logprob, targets([GOOD], **columns), Clip(), kl_weight=0.5).backward()  # its KL is flat at the reference
    assert logits.grad is not None
    expected = -2.0 * (torch.eye(VOCABULARY)[GOOD] - 1 / VOCABULARY)
    assert logits.grad[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    for advantage, behind, moves in ((1.0, 0.24, True), (1.0, 0.26, False), (-1.0, -0.2, True), (-1.0, -0.24, False)):
        logits.grad = None
        columns = {ADVANTAGE: [advantage], BEHAVIOUR: logprob.detach() - behind}
        grpo_loss(logits.log_softmax(-1)[:, GOOD], targets([GOOD], **columns), Clip(0.2, 0.28)).backward()
        assert bool((logits.grad != 0).any()) == moves


def test_grpo_ends_where_advantage_and_divergence_balance(tmp_path: Path) -> None:
    """Without a clip, A + β (r² − r) is the same for all answers, r = π_ref / π, whose shares sum to 1."""
    before, beta = answer_shares(student()), 4.0
    advantage = np.zeros(VOCABULARY)
    advantage[[GOOD, BAD]] = 1.0, -1.0
    rows = [
        answer(
            token,
            float(before[token]),
            **{
                ADVANTAGE: np.float32(advantage[token]),
                BEHAVIOUR: np.float32(before[token].log()),
                REFERENCE: np.float32(before[token].log()),
            },
        )
        for token in range(VOCABULARY)
    ]

    def loss_fn(logits_NV: Tensor, batch: Targets) -> Tensor:
        logprob_N = logits_NV.log_softmax(-1).gather(-1, batch.next_N[:, None])[:, 0]
        return grpo_loss(logprob_N, batch, Clip(0.999, 1e6), kl_weight=beta)

    def shares(level: float) -> np.ndarray:
        return before.numpy() * 2 / (1 + np.sqrt(1 + 4 * (level - advantage) / beta))

    level = brentq(lambda value: shares(value).sum() - 1, advantage.max() - beta / 4 + 1e-9, 10.0)
    found = answer_shares(taught(rows, loss_fn, tmp_path, epochs=150))
    assert found.numpy() == pytest.approx(shares(level), abs=0.01)
    assert found[GOOD] > 1.2 * before[GOOD]


def test_entropy_is_in_nats() -> None:
    assert float(entropy(torch.zeros(1, VOCABULARY))) == pytest.approx(np.log(VOCABULARY), rel=1e-5)
    assert float(entropy(torch.tensor([[1e4, 0.0, -torch.inf]]))) == pytest.approx(0, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def breaks(logits_NV: Tensor, batch: Targets) -> Tensor:
        nonlocal calls
        calls += 1
        return bc_loss(logits_NV, batch) * (float("nan") if calls == 4 else 1.0)

    settings = SETTINGS.model_copy(update={"checkpoint_seconds": 1e-9})
    model = student()
    with pytest.raises(
        TrainingError, match=r"the loss is nan at update 4 of 6; the last good checkpoint is in"
    ) as told:
        train(model, [[answer(GOOD)]] * 6, settings, seed=0, pad=0, checkpoint=tmp_path / "run", loss_fn=breaks)
    assert "\n" not in str(told.value)
    assert (tmp_path / "run" / "state.safetensors").is_file()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    done = train(model, [[answer(GOOD)]] * 6, settings, seed=0, pad=0, checkpoint=tmp_path / "run", loss_fn=bc_loss)
    assert done["updates"] == 6
