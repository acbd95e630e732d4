"""A plain training loop: packed rows, any objective, resumable at any update, no pickle.

Every target weighs what its example says: an update's gradient is the objective's sum over targets, divided by the
usual weight of an update.

The order of the data is a function of (seed, epoch), so a checkpoint is the weights, AdamW's moments and the losses
so far; a resumed run goes on exactly where the killed one stood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from flywheel.config import TrainConfig
from flywheel.distill.checkpoints import keep_best, restore_best, resume, save
from flywheel.distill.examples import Example
from flywheel.distill.models import trainable
from flywheel.distill.objectives.cloning import cloning
from flywheel.distill.packing import Targets, batches, collate, pack, pack_groups, target_logits
from flywheel.distill.schedules import factor
from flywheel.errors import TrainingError

Objective = Callable[[Tensor, Targets], Tensor]
"""(logits (N, V), targets) → the loss summed over the targets."""
Row = list[int]


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
    objective: Objective = cloning,
    held_out: Sequence[Example] = (),
    progress: Callable[[int, int, float], None] = lambda update, total, loss: None,
) -> dict[str, float]:
    """Train in place on the rows of each epoch in turn, until `held_out` rows have not become likelier for
    `config.patience` epochs; then the best epoch's weights are in force.

    Returns updates, tokens, tokens per second, and the mean loss over the first and last twentieth of the updates.
    `checkpoint` is a folder of this run alone. `progress` hears (updates done, updates in all, loss). Raises
    `TrainingError`, having kept the last good checkpoint, if the loss is not finite.
    """
    plan = _plan(epochs, config.batch_tokens * config.accumulate, seed)
    optimizer = AdamW(
        trainable(model), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True
    )
    usual = sum(float(one.weight_T.sum()) for examples in epochs for one in examples) / max(len(plan), 1)
    losses, validations = resume(checkpoint, model, optimizer)
    model.train()
    began, seen = time.perf_counter(), 0
    saved_at = time.monotonic()
    for update in range(len(losses), len(plan)):
        if _past_best(validations) >= config.patience:
            break
        epoch, rows = plan[update]
        rate = config.learning_rate * factor(config.schedule, update, len(plan), config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _backward(model, epochs[epoch], rows, config, objective, usual, pad)
        if not math.isfinite(loss):
            optimizer.zero_grad()
            raise TrainingError(
                f"the loss is {loss} at update {update + 1} of {len(plan)}; the last good checkpoint is in "
                f"{checkpoint}; lower train.learning_rate"
            )
        norm = torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        if not norm.isfinite():
            optimizer.zero_grad()
            raise TrainingError(
                f"the gradient is {norm.item()} at update {update + 1} of {len(plan)}; the last good checkpoint is in "
                f"{checkpoint}; lower train.learning_rate"
            )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        seen += sum(len(epochs[epoch][document].ids_T) for row in rows for document in row)
        progress(update + 1, len(plan), loss)
        if held_out and (update + 1 == len(plan) or plan[update + 1][0] != epoch):
            validations.append(mean_loss(model, held_out, config.batch_tokens, pad))
            if not _past_best(validations):
                keep_best(checkpoint, model)
        if time.monotonic() - saved_at > config.checkpoint_seconds:
            save(checkpoint, model, optimizer, losses, validations)
            saved_at = time.monotonic()
    restore_best(checkpoint, model)
    edge = max(1, len(losses) // 20)
    return {
        "updates": float(len(losses)),
        "tokens": float(sum(len(example.ids_T) for examples in epochs for example in examples)),
        "tokens_per_second": seen / max(time.perf_counter() - began, 1e-9),
        "first_loss": sum(losses[:edge]) / edge,
        "last_loss": sum(losses[-edge:]) / edge,
        **({"held_out_loss": min(validations)} if validations else {}),
    }


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int, pad: int) -> float:
    """Mean negative log-likelihood of the targets. The model is left in training mode."""
    model.train(False)
    total, weight = 0.0, 0.0
    for batch in batches(model, examples, batch_tokens, pad):
        total += float(cloning(target_logits(model, batch), batch.targets))
        weight += float(batch.targets.weight_N.sum())
    model.train()
    return total / max(weight, 1e-12)


def _past_best(validations: Sequence[float]) -> int:
    """Epochs since the best one; the first of equals counts."""
    return len(validations) - 1 - int(np.argmin(validations)) if validations else 0


def _backward(
    model: PreTrainedModel,
    examples: Sequence[Example],
    rows: Sequence[Row],
    config: TrainConfig,
    objective: Objective,
    usual: float,
    pad: int,
) -> float:
    """Add the gradient of one update, in parts of `batch_tokens`; the mean loss over its targets."""
    total, weight = 0.0, 0.0
    for part in _parts(examples, rows, config.batch_tokens):
        batch = collate(examples, part, pad).to(model.device)
        with _precision(config, model.device):
            loss = objective(target_logits(model, batch), batch.targets)
        torch.autograd.backward(loss / usual)
        total += loss.item()
        weight += float(batch.targets.weight_N.sum())
    return total / max(weight, 1e-12)


def _parts(examples: Sequence[Example], rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows in parts of about `batch_tokens`; groups are not taken apart, since their rows count as one part."""
    if examples[rows[0][0]].group >= 0:
        return [list(rows)]
    width = max(sum(len(examples[document].ids_T) for document in row) for row in rows)
    size = max(1, batch_tokens // width)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where it helps: on accelerators, and where it is asked for."""
    wanted = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def _plan(epochs: Sequence[Sequence[Example]], batch_tokens: int, seed: int) -> list[tuple[int, list[Row]]]:
    """Every update of the run as (epoch, rows of document indices); a function of the seed."""
    return [
        (epoch, rows)
        for epoch, examples in enumerate(epochs)
        for rows in _packed(examples, batch_tokens, np.random.default_rng([seed, epoch]))
    ]


def _packed(examples: Sequence[Example], batch_tokens: int, chance: np.random.Generator) -> list[list[Row]]:
    lengths = [len(one.ids_T) for one in examples]
    if any(one.group >= 0 for one in examples):
        return pack_groups(lengths, [one.group for one in examples], batch_tokens, chance)
    return pack(lengths, batch_tokens, chance)
