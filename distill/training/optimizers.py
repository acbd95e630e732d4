"""How gradients become new weights: by AdamW in each process, or by DeepSpeed's ZeRO, which spreads AdamW's state.

Rajbhandari et al. 2020 (arXiv 1910.02054), stage 2: optimizer states and gradients are spread over the processes, the
weights are whole in each. FSDP2 (`train.sharing = "sharded"`) spreads the weights, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from flywheel.config.distill import TrainConfig
from flywheel.errors import PrerequisiteError
from flywheel.policies.models import trainable
from flywheel.runtime.distributed import distributed_like, full_tensor, parallelized, part_of_update, world_size

MOMENTS = ("exp_avg", "exp_avg_sq")
CLIP = 1.0
"""Gradients are clipped to this norm."""


class Optimizer(Protocol):
    """One training run's optimizer. `learner` is what batches go through."""

    learner: nn.Module

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one part of an update."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a part's gradient, averaged over the processes."""

    def step(self, rate: float) -> float:
        """Update the weights; the gradient's norm. If that is not finite, the run must not go on."""

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's moments and step count of a parameter, whole; all processes must ask."""

    def restore(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Put whole moments back; the weights have been."""


def make_optimizer(learner: nn.Module, layers: list[nn.Module], config: TrainConfig) -> Optimizer:
    """The optimizer that a config asks for; alone, every process has all of it."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "betas": (0.9, 0.95)}
    if config.sharing == "deepspeed" and world_size() > 1:
        return ZeroOptimizer(learner, settings, config)
    wrapped = parallelized(learner, layers, "sharded" if config.sharing == "sharded" else "replicated")
    return AdamWOptimizer(wrapped, AdamW(trainable(learner), fused=True, **settings))


class AdamWOptimizer:
    """AdamW over what each process holds."""

    def __init__(self, learner: nn.Module, optimizer: AdamW) -> None:
        self.learner = learner
        self._optimizer = optimizer

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        return part_of_update(self.learner, last=last)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        torch.autograd.backward(loss)

    def step(self, rate: float) -> float:
        _set_rate(self._optimizer, rate)
        norm = float(full_tensor(nn.utils.clip_grad_norm_(trainable(self.learner), CLIP)))
        if norm < float("inf"):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {name: full_tensor(value) for name, value in self._optimizer.state[parameter].items()}

    def restore(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        for parameter, state in states.items():
            moments = {name: distributed_like(state[name], parameter) for name in MOMENTS}
            self._optimizer.state[parameter] = {**moments, "step": state["step"].to(parameter.device)}


class ZeroOptimizer:
    """AdamW whose state DeepSpeed spreads over the processes."""

    def __init__(self, learner: nn.Module, settings: dict[str, Any], config: TrainConfig) -> None:
        try:
            import deepspeed
        except ModuleNotFoundError:
            raise PrerequisiteError(
                "train.sharing = 'deepspeed' needs DeepSpeed: pip install --no-build-isolation deepspeed"
            ) from None
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self._optimizer = AdamW(trainable(learner), **settings)
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=learner,
            optimizer=self._optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks, and uses it for nothing but its own counting
                "gradient_accumulation_steps": 1,
                "gradient_clipping": CLIP,
                "zero_optimization": {"stage": 2},
                "zero_allow_untested_optimizer": True,
            },
        )
        self.learner: nn.Module = self._engine

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # counts the part

    def step(self, rate: float) -> float:
        _set_rate(self._optimizer, rate)
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
        return {**moments, "step": next(iter(self._optimizer.state.values()))["step"].clone()}

    def restore(self, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        if not states:
            return
        step = next(iter(states.values()))["step"]
        for group in self._optimizer.param_groups:
            for flat in group["params"]:
                empty = {name: torch.zeros_like(flat) for name in MOMENTS}
                self._optimizer.state[flat] = {**empty, "step": step.clone()}
        self._zero._lazy_init_hp_params_optimizer_state()  # else only the first step lets one reach them by parameter
        for parameter, state in states.items():
            for name in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[name].to(parameter.device), name)


def _set_rate(optimizer: AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
