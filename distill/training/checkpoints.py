"""A training run's state on disk, without pickle: weights, AdamW's moments, losses so far; whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flywheel.distill.training.optimizers import MOMENTS, Optimizer
from flywheel.runtime.distributed import barrier, distributed_like, full_tensor, is_main

CHECKPOINT, BEST = "state.safetensors", "best.safetensors"


def save(
    directory: Path, model: nn.Module, optimizer: Optimizer, losses: Sequence[float], validations: Sequence[float]
) -> None:
    """Write the checkpoint aside, then rename it into place."""
    tensors: dict[str, Tensor] = {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "validations": torch.tensor(validations, dtype=torch.float64),
    }
    for name, parameter in _learning(model):
        tensors[f"model/{name}"] = full_tensor(parameter.detach())
        for moment, value in optimizer.state(parameter).items():
            tensors[f"{moment}/{name}"] = value
    _write(directory / CHECKPOINT, tensors)


def keep_best(directory: Path, model: nn.Module) -> None:
    """Write the weights aside as the best so far."""
    _write(directory / BEST, whole_weights(model))


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is learned, by name; where processes share it, all of them must ask."""
    return {name: full_tensor(parameter.detach()) for name, parameter in _learning(model)}


def take_over(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put learned weights into a model of the same kind, spread or not."""
    with torch.no_grad():
        for name, parameter in _learning(model):
            parameter.copy_(distributed_like(weights[name], parameter))


def restore_best(directory: Path, model: nn.Module) -> None:
    """Load the best weights so far, if any were kept."""
    barrier()
    if (directory / BEST).is_file():
        take_over(model, load_file(directory / BEST))


def resume(directory: Path, model: nn.Module, optimizer: Optimizer) -> tuple[list[float], list[float]]:
    """Load the checkpoint, if there is one, into model and optimizer; losses by update, of held-out tasks by epoch.

    Everything in it is whole: processes of another number, or with other parallelism, go on from it, too.
    """
    path = directory / CHECKPOINT
    if not path.is_file():
        return [], []
    tensors = load_file(path)
    states = {}
    with torch.no_grad():
        for name, parameter in _learning(model):
            parameter.copy_(distributed_like(tensors[f"model/{name}"], parameter))
            if f"step/{name}" in tensors:
                states[parameter] = {key: tensors[f"{key}/{name}"] for key in (*MOMENTS, "step")}
        optimizer.restore(states)
    return tensors["losses"].tolist(), tensors["validations"].tolist()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
