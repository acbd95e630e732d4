"""Filtered behaviour cloning: the likelihood of what verified episodes did, each target by its weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import BCConfig
from flywheel.distill.algorithms.protocol import Finetuning, RoleTraining
from flywheel.distill.batching.packing import Targets
from flywheel.policies.card import PolicyCard


def bc_loss(logits_NV: Tensor, targets: Targets) -> Tensor:
    """−Σ w log π(a|s). With weights 1 it is the baseline of every table; with others see `awr`."""
    return (targets.weight_N * cross_entropy(logits_NV, targets.next_N, reduction="none")).sum()


def cloned(role: Role) -> RoleTraining:
    """Every target of every row alike."""
    return RoleTraining(bc_loss)


@dataclass(frozen=True, slots=True)
class BC:
    """Cloning goes on from the same corpus: the control of the other algorithms."""

    settings: BCConfig

    def finetune(self, start: Finetuning) -> PolicyCard:
        return start.trained(start.phase(self.settings), self.settings, lambda: cloned)
