"""Filtered behaviour cloning: the likelihood of what verified episodes did, each target by its weight."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from flywheel.distill.batching.packing import Targets


def bc_loss(logits_NV: Tensor, targets: Targets) -> Tensor:
    """−Σ w log π(a|s). With weights 1 it is the baseline of every table; with others see `regression`."""
    return (targets.weight_N * cross_entropy(logits_NV, targets.next_N, reduction="none")).sum()
