"""A plain training loop: packed rows, one-cycle learning rate, resumable at any update, no pickle.

Every target token weighs the same: an update's gradient is its sum over targets, divided by the usual number of them.

The order of the data is a function of (seed, epoch), so a checkpoint is the weights, AdamW's moments and the number
of the update; a resumed run goes on exactly where the killed one stood.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from flywheel.config import TrainConfig
from flywheel.distill.examples import Example
from flywheel.distill.packing import collate, pack, packed_loss

CHECKPOINT = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def pick_device(name: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def train(
    model: PreTrainedModel,
    epochs: Sequence[Sequence[Example]],
    config: TrainConfig,
    *,
    seed: int,
    pad: int,
    checkpoint: Path,
    progress: Callable[[int, int, float], None] = lambda update, total, loss: None,
) -> dict[str, float]:
    """Train in place on the rows of each epoch in turn.

    Returns updates, tokens, and the mean loss over the first and over the last twentieth of the updates.

    `checkpoint` is a folder of this run alone. `progress` hears (updates done, updates in all, loss).
    """
    plan = _plan(epochs, config.batch_tokens, seed)
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    usual_targets = sum(int(one.target_T.sum()) for examples in epochs for one in examples) / len(plan)
    losses = _resume(checkpoint, model, optimizer)
    model.train()
    saved_at = time.monotonic()
    for update in range(len(losses), len(plan)):
        epoch, rows = plan[update]
        batch = collate(epochs[epoch], rows, pad)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * one_cycle(update, len(plan), config.warmup)
        loss = packed_loss(model, batch)
        torch.autograd.backward(loss * batch.targets / usual_targets)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress(update + 1, len(plan), losses[-1])
        if time.monotonic() - saved_at > config.checkpoint_seconds:
            _save(checkpoint, model, optimizer, losses)
            saved_at = time.monotonic()
    edge = max(1, len(losses) // 20)
    return {
        "updates": float(len(plan)),
        "tokens": float(sum(len(example.ids_T) for examples in epochs for example in examples)),
        "first_loss": sum(losses[:edge]) / edge,
        "last_loss": sum(losses[-edge:]) / edge,
    }


def one_cycle(update: int, total: int, warmup: float) -> float:
    """Learning-rate factor: a linear rise over the warm-up, then a linear fall to 2 %."""
    rising = max(1.0, warmup * total)
    return min((update + 1) / rising, max(0.02, 1 - update / total))


def _plan(epochs: Sequence[Sequence[Example]], batch_tokens: int, seed: int) -> list[tuple[int, list[list[int]]]]:
    """Every update of the run as (epoch, rows of document indices); a function of the seed."""
    return [
        (epoch, rows)
        for epoch, examples in enumerate(epochs)
        for rows in pack([len(one.ids_T) for one in examples], batch_tokens, np.random.default_rng([seed, epoch]))
    ]


def _save(directory: Path, model: PreTrainedModel, optimizer: AdamW, losses: Sequence[float]) -> None:
    """Write the checkpoint aside, then rename it into place."""
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{CHECKPOINT}.new"
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
    temporary.replace(directory / CHECKPOINT)


def _resume(directory: Path, model: PreTrainedModel, optimizer: AdamW) -> list[float]:
    """Load the checkpoint into model and optimizer, if there is one; the losses of the updates that it holds."""
    path = directory / CHECKPOINT
    if not path.is_file():
        return []
    tensors = load_file(path, device=str(model.device))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            optimizer.state[parameter] = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
            optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].cpu()
    losses: list[float] = tensors["losses"].tolist()
    return losses
