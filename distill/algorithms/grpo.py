"""Group-relative policy optimisation (GRPO, arXiv 2402.03300, section 4.1): attempts at one task are each other's
baseline, so that there is no critic.

Options: clip-higher, tokens that count alike, and groups without contrast left out (DAPO, arXiv 2503.14476, sections
3.1 to 3.3); advantages that are not divided by the group's standard deviation (Dr. GRPO, arXiv 2503.20783, section
3.1). The training loop divides by the mean weight of an update, a constant, so that `average = "token"` has no bias by
length, as Dr. GRPO asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import GRPOConfig
from flywheel.config.root import Config
from flywheel.distill.algorithms.decisions import REFERENCE, DecisionRows
from flywheel.distill.algorithms.ppo import Clip, clipped_surrogate, decision_training
from flywheel.distill.algorithms.protocol import Finetuning, RoleTraining
from flywheel.distill.algorithms.self_play import (
    online_phase,
    only,
    play_round,
    scores_in,
    verified_in,
    widest_offer,
)
from flywheel.distill.batching.packing import Targets
from flywheel.errors import TrainingError
from flywheel.filters.batch import Floats
from flywheel.policies.card import PolicyCard

TINY = 1e-6
"""Added to a group's standard deviation, as published code does."""


def group_advantages(reward_N: Floats, task_N: Sequence[str], *, scale_by_std: bool = True) -> Floats:
    """(N,): each attempt's reward less the mean of its task's attempts, over their standard deviation (N − 1).

    Among n attempts of which k succeed, a success has (1 − p) / s and a failure −p / s, p = k / n and s² = n p (1 − p)
    / (n − 1). A task whose attempts all earned the same has advantages of 0.
    """
    _, group_N = np.unique(np.asarray(task_N), return_inverse=True)
    count_G = np.bincount(group_N)
    most_G, least_G = np.full(len(count_G), -np.inf), np.full(len(count_G), np.inf)
    np.maximum.at(most_G, group_N, reward_N)
    np.minimum.at(least_G, group_N, reward_N)
    differs_N = (most_G > least_G)[group_N]  # the mean of equal rewards may be off by a rounding
    centred_N = np.where(differs_N, reward_N - (np.bincount(group_N, reward_N) / count_G)[group_N], 0.0)
    if not scale_by_std:
        return np.asarray(centred_N, np.float64)
    deviation_G = np.sqrt(np.bincount(group_N, centred_N**2) / np.maximum(count_G - 1, 1))
    return np.asarray(centred_N / (deviation_G + TINY)[group_N], np.float64)


def grpo_loss(logprob_N: Tensor, targets: Targets, clip: Clip, kl_weight: float = 0.0) -> Tensor:
    """−Σ w [clipped surrogate − β KL], KL(π ‖ π_ref) by the estimate π_ref/π − log(π_ref/π) − 1 (equation 4)."""
    gain_N = clipped_surrogate(logprob_N, targets, clip)
    if kl_weight:
        apart_N = targets.columns[REFERENCE] - logprob_N
        gain_N = gain_N - kl_weight * (apart_N.exp() - apart_N - 1)
    return -(targets.weight_N * gain_N).sum()


@dataclass(frozen=True, slots=True)
class GRPO:
    """Rounds of self-play with several attempts at each task. Every decision of an attempt has its advantage."""

    settings: GRPOConfig

    def finetune(self, start: Finetuning) -> PolicyCard:
        settings = self.settings
        phase = online_phase(start, settings)
        student = start.student
        for number in range(settings.rounds):
            corpus = play_round(phase, start.lake, student.policy_id, settings.tasks_of(number), settings.attempts)
            rewards = scores_in(start.lake, corpus) if settings.reward == "score" else verified_in(start.lake, corpus)
            ids = list(corpus.tasks)
            advantages = group_advantages(
                np.array([rewards[trajectory] for trajectory in ids]),
                [corpus.tasks[trajectory] for trajectory in ids],
                scale_by_std=settings.scale_by_std,
            )
            of_attempt = dict(zip(ids, advantages.tolist(), strict=True))
            contrasted = {corpus.tasks[trajectory] for trajectory, advantage in of_attempt.items() if advantage}
            if not contrasted:
                raise TrainingError(
                    f"all attempts at each task of round {number + 1} earned the same, so nothing can be learned from "
                    "them; raise finetune.attempts, choose other tasks with finetune.first_task, or reward = 'score'"
                )
            teaching = [trajectory for trajectory, task in corpus.tasks.items() if task in contrasted]
            played = replace(start, corpus=only(corpus, teaching), student=student)
            roles = partial(self._roles, phase, played, start, of_attempt)
            student = played.trained(phase, settings, roles, identity=(number,))
        return student

    def _roles(
        self, phase: Config, played: Finetuning, start: Finetuning, advantages: Mapping[str, float]
    ) -> Callable[[Role], RoleTraining]:
        settings = self.settings
        decisions = DecisionRows(
            lambda level, trajectory, step: advantages[trajectory],
            verified_in(played.lake, played.corpus),
            played.student.decoding.max_repeats,
            widest_offer(played.lake, played.corpus),
            alike=settings.average == "episode",
        )
        clip = Clip(settings.clip_low, settings.clip_high)
        loss = partial(grpo_loss, clip=clip, kl_weight=settings.kl_weight)

        def role_training(role: Role) -> RoleTraining:
            reference = start.directory / role if settings.kl_weight else None
            return decision_training(phase, played.directory / role, decisions, loss, clip, reference=reference)

        return role_training
