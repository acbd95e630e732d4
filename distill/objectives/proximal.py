"""Proximal policy optimisation over many turns (PPO, arXiv 1707.06347), with what long horizons taught its users.

Clip-higher and token-level averaging: DAPO (arXiv 2503.14476, sections 3.1 and 3.3). Likelihood of successes beside
it: VAPO (arXiv 2504.05118, section 4.3). Advantages come from `distill.credit`, critics are trained before the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flywheel.distill.packing import Targets

ADVANTAGE, BEHAVIOUR, SUCCESS = "advantage", "behaviour", "success"
"""Columns (N,): advantage of the decision, the token's log-probability under the policy that acted, 1 in episodes that
were verified."""


@dataclass(frozen=True, slots=True)
class Clip:
    """How far a token's probability may move before its gradient ends, down and up, and the weight of successes."""

    low: float = 0.2
    high: float = 0.28
    success: float = 0.1


def proximal(logprob_N: Tensor, targets: Targets, clip: Clip) -> Tensor:
    """−Σ w [min(ρ A, clip(ρ, 1 − low, 1 + high) A) + μ 1(success) log π], ρ = π / π_behaviour."""
    advantage_N = targets.columns[ADVANTAGE]
    ratio_N = (logprob_N - targets.columns[BEHAVIOUR]).exp()
    clipped_N = ratio_N.clamp(1 - clip.low, 1 + clip.high)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    return -(targets.weight_N * (gain_N + clip.success * targets.columns[SUCCESS] * logprob_N)).sum()


def entropy(logits_NV: Tensor) -> Tensor:
    """(N,): of the distribution over tokens, in nats. UI-TARS-2 (arXiv 2509.02544) watches it, and so should you."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV.clamp(min=-1e30)).sum(-1)
