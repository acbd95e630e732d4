"""Direct preference over whole episodes: a success and a failure of one task (DPO, arXiv 2305.18290, equation 7; as in
ETO, arXiv 2403.02502, section 3.3, over all of an agent's turns)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from flywheel.distill.batching.packing import Targets

PAIR, SIDE, REFERENCE = "pair", "side", "reference"
"""Columns (N,): number of the pair, +1 where the episode is the better one and −1 where it is the worse one, and the
token's log-probability under the policy that training began with."""


def dpo_loss(logits_NV: Tensor, targets: Targets, *, beta: float = 0.1) -> Tensor:
    """−Σ_pairs log σ(β margin); the margin is how much further apart the two episodes are than under the reference."""
    margin_P = margins(logits_NV, targets)
    return -logsigmoid(beta * margin_P).sum()


def margins(logits_NV: Tensor, targets: Targets) -> Tensor:
    """(P,): Σ log π/π_ref over the better episode less the same over the worse one, by pair."""
    logprob_N = -cross_entropy(logits_NV, targets.next_N, reduction="none")
    apart_N = targets.columns[SIDE] * (logprob_N - targets.columns[REFERENCE])
    _, pair_N = torch.unique(targets.columns[PAIR], return_inverse=True)
    margin_P: Tensor = apart_N.new_zeros(int(pair_N.max()) + 1).index_add(0, pair_N, apart_N)
    return margin_P
