"""A training run's state on disk, without pickle: weights, AdamW's moments, losses so far; whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

CHECKPOINT = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save(directory: Path, model: nn.Module, optimizer: AdamW, losses: Sequence[float]) -> None:
    """Write the checkpoint aside, then rename it into place."""
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in _learning(model):
        tensors[f"model/{name}"] = parameter.detach()
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}/{name}"] = value
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{CHECKPOINT}.new"
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
    temporary.replace(directory / CHECKPOINT)


def resume(directory: Path, model: nn.Module, optimizer: AdamW) -> list[float]:
    """Load the checkpoint into model and optimizer, if there is one; the losses of the updates that it holds."""
    path = directory / CHECKPOINT
    if not path.is_file():
        return []
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in _learning(model):
            parameter.copy_(tensors[f"model/{name}"])
            if f"step/{name}" in tensors:
                state = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
                moved = {moment: state[moment].to(parameter.device) for moment in MOMENTS[:2]}
                optimizer.state[parameter] = {**moved, "step": state["step"]}
    losses: list[float] = tensors["losses"].tolist()
    return losses


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
