"""Proximal policy optimisation over many turns (PPO, arXiv 1707.06347), with what long horizons taught its users.

Clip-higher and token-level averaging: DAPO (arXiv 2503.14476, sections 3.1 and 3.3). Likelihood of successes beside
it: VAPO (arXiv 2504.05118, section 4.3). Advantages come from `distill.credit`, critics are trained before the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flywheel.distill.batching.packing import Targets

ADVANTAGE, BEHAVIOUR, SUCCESS, OPTIONS = "advantage", "behaviour", "success", "options"
"""Columns (N,): advantage of the decision, the token's log-probability under the policy that acted, 1 in episodes that
were verified. (N, K): the tokens that were open there, -1 where there are fewer; K = 1 where nothing was listed."""


@dataclass(frozen=True, slots=True)
class Clip:
    """How far a token's probability may move before its gradient ends, down and up, and the weight of successes."""

    low: float = 0.2
    high: float = 0.28
    success: float = 0.1


def ppo_loss(logprob_N: Tensor, targets: Targets, clip: Clip) -> Tensor:
    """−Σ w [min(ρ A, clip(ρ, 1 − low, 1 + high) A) + μ 1(success) log π], ρ = π / π_behaviour."""
    advantage_N = targets.columns[ADVANTAGE]
    ratio_N = (logprob_N - targets.columns[BEHAVIOUR]).exp()
    clipped_N = ratio_N.clamp(1 - clip.low, 1 + clip.high)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    return -(targets.weight_N * (gain_N + clip.success * targets.columns[SUCCESS] * logprob_N)).sum()


def chosen(logits_NV: Tensor, targets: Targets, never: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """(log-probability (N,) of what was said, entropy (N,) in nats), among the options that were open at each token.

    Where no options are listed, all tokens are open but those in `never`.
    """
    options_NK = targets.columns[OPTIONS].long()
    if options_NK.shape[-1] == 1:
        barred_V = logits_NV.new_zeros(logits_NV.shape[-1])
        barred_V[list(never)] = -torch.inf
        open_NK = logits_NV + barred_V
    else:
        open_NK = logits_NV.gather(-1, options_NK.clamp(min=0)).masked_fill(options_NK < 0, -torch.inf)
    said_N = logits_NV.gather(-1, targets.next_N[:, None])[:, 0]
    return said_N - open_NK.logsumexp(-1), entropy(open_NK)


def practised(logits_NV: Tensor, targets: Targets, clip: Clip, never: Sequence[int]) -> Tensor:
    """`proximal` of a student's own decisions."""
    return ppo_loss(chosen(logits_NV, targets, never)[0], targets, clip)


def watched(logits_NV: Tensor, targets: Targets, clip: Clip, never: Sequence[int]) -> dict[str, Tensor]:
    """Sums over the targets: entropy, an estimate of KL(behaviour ‖ policy), and how many the clip holds back."""
    logprob_N, entropy_N = chosen(logits_NV, targets, never)
    moved_N = logprob_N - targets.columns[BEHAVIOUR]
    ratio_N, gains_N = moved_N.exp(), targets.columns[ADVANTAGE] > 0
    held_N = torch.where(gains_N, ratio_N > 1 + clip.high, ratio_N < 1 - clip.low)
    return {"entropy": entropy_N.sum(), "kl": (ratio_N - 1 - moved_N).sum(), "clipped": held_N.sum()}


def entropy(logits_NV: Tensor) -> Tensor:
    """(N,): of the distribution over tokens, in nats. UI-TARS-2 (arXiv 2509.02544) watches it, and so should you."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV.clamp(min=-1e30)).sum(-1)
