"""Multi-turn proximal policy optimisation (PPO, arXiv 1707.06347) with corrections for long horizons.

Clip-higher and token-level averaging: DAPO (arXiv 2503.14476, sections 3.1 and 3.3). Likelihood of successes beside
it: VAPO (arXiv 2504.05118, section 4.3). Advantages come from `distill.credit`, critics are trained before the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import torch
from torch import Tensor

from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import PPOConfig
from flywheel.config.root import Config
from flywheel.distill.algorithms.decisions import (
    ADVANTAGE,
    BEHAVIOUR,
    REFERENCE,
    SUCCESS,
    DecisionRows,
    decision_logprobs,
    forbidden_tokens,
    with_decision_logprobs,
)
from flywheel.distill.algorithms.estimated_advantages import by_decision, estimate_advantages
from flywheel.distill.algorithms.protocol import Finetuning, RoleTraining
from flywheel.distill.algorithms.self_play import online_phase, play_round, verified_in, widest_offer
from flywheel.distill.batching.packing import Targets
from flywheel.distill.credit.critics import ValueHead
from flywheel.distill.credit.hierarchical import normalised
from flywheel.distill.training.loop import Loss
from flywheel.policies.card import ROLES, PolicyCard


@dataclass(frozen=True, slots=True)
class Clip:
    """How far a token's probability may move before its gradient ends, down and up, as a ratio."""

    low: float = 0.2
    high: float = 0.28


def clipped_surrogate(logprob_N: Tensor, targets: Targets, clip: Clip) -> Tensor:
    """(N,): min(ρ A, clip(ρ, 1 − low, 1 + high) A), ρ = π / π_behaviour (PPO, equation 7)."""
    advantage_N = targets.columns[ADVANTAGE]
    ratio_N = (logprob_N - targets.columns[BEHAVIOUR]).exp()
    return torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - clip.low, 1 + clip.high) * advantage_N)


def ppo_loss(logprob_N: Tensor, targets: Targets, clip: Clip, success_weight: float = 0.1) -> Tensor:
    """−Σ w [surrogate + μ 1(success) log π], μ = `success_weight`."""
    gain_N = clipped_surrogate(logprob_N, targets, clip)
    return -(targets.weight_N * (gain_N + success_weight * targets.columns[SUCCESS] * logprob_N)).sum()


def clip_metrics(logits_NV: Tensor, targets: Targets, clip: Clip, forbidden: Sequence[int]) -> dict[str, Tensor]:
    """Sums over the targets: entropy, an estimate of KL(behaviour ‖ policy), and how many the clip holds back."""
    logprob_N, entropy_N = decision_logprobs(logits_NV, targets, forbidden)
    moved_N = logprob_N - targets.columns[BEHAVIOUR]
    ratio_N, gains_N = moved_N.exp(), targets.columns[ADVANTAGE] > 0
    held_N = torch.where(gains_N, ratio_N > 1 + clip.high, ratio_N < 1 - clip.low)
    return {"entropy": entropy_N.sum(), "kl": (ratio_N - 1 - moved_N).sum(), "clipped": held_N.sum()}


def decision_training(
    phase: Config,
    folder: Path,
    decisions: DecisionRows,
    loss: Loss,
    clip: Clip,
    *,
    critic: ValueHead | None = None,
    reference: Path | None = None,
) -> RoleTraining:
    """What a role learns from decisions that the model in a folder made. `loss`: (log-probabilities (N,) among the
    options, targets) → sum over the targets. `reference`: the folder of a model that is stayed close to."""
    forbidden = forbidden_tokens(folder)
    models = {BEHAVIOUR: folder} | ({REFERENCE: reference} if reference else {})

    def loss_of_logits(logits_NV: Tensor, targets: Targets) -> Tensor:
        return loss(decision_logprobs(logits_NV, targets, forbidden)[0], targets)

    return RoleTraining(
        loss_of_logits,
        decisions.rows,
        partial(with_decision_logprobs, phase, models, forbidden),
        partial(clip_metrics, clip=clip, forbidden=forbidden),
        critic,
    )


@dataclass(frozen=True, slots=True)
class PPO:
    """Rounds of self-play: the student plays, critics say what each decision was worth, it is updated."""

    settings: PPOConfig

    def finetune(self, start: Finetuning) -> PolicyCard:
        phase = online_phase(start, self.settings)
        student = start.student
        for number in range(self.settings.rounds):
            corpus = play_round(phase, start.lake, student.policy_id, self.settings.tasks_of(number))
            played = replace(start, corpus=corpus, student=student)
            student = played.trained(phase, self.settings, partial(self._roles, phase, played), identity=(number,))
        return student

    def _roles(self, phase: Config, played: Finetuning) -> Callable[[Role], RoleTraining]:
        """Critics are fitted to the round's returns before the policy moves; advantages are normalised by level."""
        settings, lake, corpus = self.settings, played.lake, played.corpus
        credits, critics = estimate_advantages(
            phase, settings.credit, lake, corpus, ROLES[played.kind], played.directory
        )
        worth = {}
        for level in dict.fromkeys(credits["level"].to_pylist()):
            rows = credits.filter(pc.equal(credits["level"], level))
            worth[level] = by_decision(rows, normalised(rows["advantage"].to_numpy()))
        decisions = DecisionRows(
            lambda level, trajectory, step: worth[level].get((trajectory, step), 0.0),
            verified_in(lake, corpus),
            played.student.decoding.max_repeats,
            widest_offer(lake, corpus),
        )
        clip = Clip(settings.clip_low, settings.clip_high)
        loss = partial(ppo_loss, clip=clip, success_weight=settings.success_weight)
        return lambda role: decision_training(
            phase, played.directory / role, decisions, loss, clip, critic=critics[role]
        )
