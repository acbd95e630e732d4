"""AdamW in each process, over whole parameters (DDP) or over its share of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.optim import AdamW

from flywheel.config.train import TrainConfig
from flywheel.policies.models import trainable
from flywheel.runtime.distributed import distributed_like, full_tensor, parallelized, part_of_update

MOMENTS = ("exp_avg", "exp_avg_sq")
CLIP = 1.0
"""Gradients are clipped to this norm."""


class Optimizer:
    """AdamW over what each process holds. `learner` is what batches go through."""

    def __init__(self, learner: nn.Module, layers: list[nn.Module], config: TrainConfig) -> None:
        self.learner = parallelized(learner, layers, config.parallelism)
        self._adamw = AdamW(
            trainable(learner),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.95),
            fused=True,
        )

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one part of an update."""
        return part_of_update(self.learner, last=last)

    def step(self, rate: float) -> float:
        """Update the weights; the gradient's norm. If that is not finite, nothing is updated."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        norm = float(full_tensor(nn.utils.clip_grad_norm_(trainable(self.learner), CLIP)))
        if norm < float("inf"):
            self._adamw.step()
        self._adamw.zero_grad()
        return norm

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's moments and step count of a parameter, whole; all processes must ask."""
        return {name: full_tensor(value) for name, value in self._adamw.state[parameter].items()}

    def restore(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Put whole moments back; the weights have been."""
        for parameter, state in states.items():
            moments = {name: distributed_like(state[name], parameter) for name in MOMENTS}
            self._adamw.state[parameter] = {**moments, "step": state["step"].to(parameter.device)}
