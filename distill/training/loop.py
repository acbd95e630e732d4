"""A plain training loop: packed rows, any loss, one process or several, resumable at any update, no pickle.

Every target weighs what its example says: an update's gradient is the loss's sum over targets, divided by the
usual weight of an update. Several processes share the rows of each update, so that their number changes nothing but
the order of sums.

The order of the data is a function of (seed, epoch), so a checkpoint is the weights, AdamW's moments and the losses
so far; a resumed run goes on exactly where the killed one stood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from flywheel.config.train import TrainConfig
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import PackedBatch, Targets, batches, collate, pack, pack_groups, target_logits
from flywheel.distill.batching.row_store import groups_of, lengths_of, weight_of
from flywheel.distill.training.checkpoints import keep_best, restore_best, resume, save
from flywheel.distill.training.optimizers import Optimizer
from flywheel.distill.training.schedules import factor
from flywheel.distill.training.tracking import EVERY, Log
from flywheel.errors import TrainingError
from flywheel.runtime.distributed import all_reduce, broadcast, rank, world_size

Loss = Callable[[Tensor, Targets], Tensor]
"""(logits (N, V), targets) → the loss summed over the targets."""
Metrics = Callable[[Tensor, Targets], Mapping[str, Tensor]]
"""(logits (N, V), targets) → sums over the targets of what is worth a curve."""
Row = list[int]


class Learner(nn.Module):
    """What is trained, as one module whose forward pass is all that training needs of it."""

    def __init__(self, model: PreTrainedModel, *, narrow: bool) -> None:
        super().__init__()
        self.model = model
        self._narrow = narrow

    def forward(self, batch: PackedBatch) -> Tensor:
        """(N, V): logits of the targets."""
        return target_logits(self.model, batch, narrow=self._narrow)


def train(
    model: PreTrainedModel,
    epochs: Sequence[Sequence[Example]],
    config: TrainConfig,
    *,
    seed: int,
    pad: int,
    checkpoint: Path,
    loss_fn: Loss,
    metrics_fn: Metrics = lambda logits, targets: {},
    validation: Sequence[Example] = (),
    progress: Callable[[int, int, float], None] = lambda update, total, loss: None,
    log: Log = lambda update, measured: None,
) -> dict[str, float]:
    """Train in place on the rows of each epoch in turn, until `validation` rows have not become likelier for
    `config.patience` epochs; then the best epoch's weights are in force.

    Returns updates, tokens, tokens per second, the mean loss over the first and last twentieth of the updates, and the
    means of what `metrics_fn` measured over the same. `checkpoint` is a folder of this run alone. `progress` hears
    (updates done, updates in all, loss), `log` every few updates the curves. Raises `TrainingError`, having kept the
    last good checkpoint, if the loss is not finite. A sharded model is spread over the processes afterwards, too.
    """
    update_tokens = config.batch_tokens * config.accumulate
    counts = [sum(1 for _ in _packed(examples, update_tokens, seed, epoch)) for epoch, examples in enumerate(epochs)]
    total = sum(counts)
    device = model.device
    whole_layers = world_size() == 1 or config.parallelism != "sharded"
    optimizer = Optimizer(Learner(model, narrow=whole_layers), _layers(model), config)
    usual = sum(map(weight_of, epochs)) / max(total, 1)
    losses, validations = resume(checkpoint, model, optimizer)
    model.train()
    began, seen, first = time.perf_counter(), 0, len(losses)
    saved_at = time.monotonic()
    measured: list[dict[str, float]] = []
    for update, epoch, rows in islice(_plan(epochs, update_tokens, seed), first, None):
        if _past_best(validations) >= config.patience:
            break
        rate = config.learning_rate * factor(config.schedule, update, total, config.warmup)
        torch.manual_seed(seed + (update << 20) + rank())  # of dropout, so that a resumed run drops the same
        loss, metrics = _backward(optimizer, epochs[epoch], rows, config, loss_fn, metrics_fn, usual, pad, device)
        if not math.isfinite(loss):
            model.zero_grad()  # later users of the model start without gradients
        _refuse_infinite("loss", loss, update, total, checkpoint)
        norm = optimizer.step(rate)
        _refuse_infinite("gradient", norm, update, total, checkpoint)
        losses.append(loss)
        measured.append(metrics)
        seen += sum(len(epochs[epoch][document].ids_T) for row in rows for document in row)
        progress(update + 1, total, loss)
        if update % EVERY == 0 or update + 1 == total:
            speed = seen / max(time.perf_counter() - began, 1e-9)
            curves = {"loss": loss, "learning_rate": rate, "gradient_norm": norm, "tokens_per_second": speed}
            log(update + 1, {**curves, **metrics})
        if validation and update + 1 == sum(counts[: epoch + 1]):
            validations.append(mean_loss(model, validation, config.batch_tokens, pad, forward=optimizer.learner))
            log(update + 1, {"validation_loss": validations[-1]})
            if not _past_best(validations):
                keep_best(checkpoint, model)
        if _due(update, time.monotonic() - saved_at > config.checkpoint_seconds):
            save(checkpoint, model, optimizer, losses, validations)
            saved_at = time.monotonic()
    restore_best(checkpoint, model)
    edge = max(1, len(losses) // 20)
    return {
        "updates": float(len(losses)),
        "tokens": float(sum(sum(lengths_of(examples)) for examples in epochs)),
        "tokens_per_second": seen / max(time.perf_counter() - began, 1e-9),
        "first_loss": sum(losses[:edge]) / edge,
        "last_loss": sum(losses[-edge:]) / edge,
        **_edges(measured),
        **({"validation_loss": min(validations)} if validations else {}),
    }


def mean_loss(
    model: PreTrainedModel,
    examples: Sequence[Example],
    batch_tokens: int,
    pad: int,
    *,
    forward: Callable[[PackedBatch], Tensor] | None = None,
) -> float:
    """Mean negative log-likelihood of the targets. The model is left in training mode."""
    model.train(False)
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for batch in batches(model, examples, batch_tokens, pad):
            logits_NV = forward(batch) if forward else target_logits(model, batch)
            nll_N = cross_entropy(logits_NV, batch.targets.next_N, reduction="none")
            total += float((batch.targets.weight_N * nll_N).sum())
            weight += float(batch.targets.weight_N.sum())
    model.train()
    return total / max(weight, 1e-12)


def _past_best(validations: Sequence[float]) -> int:
    """Epochs since the best one; the first of equals counts."""
    return len(validations) - 1 - int(np.argmin(validations)) if validations else 0


def _due(update: int, late: bool) -> bool:
    """Is it time for a checkpoint? Several processes write it together, when the first one says so."""
    return late if world_size() == 1 else update % EVERY == 0 and bool(broadcast(int(late)))


def _refuse_infinite(what: str, value: float, update: int, total: int, checkpoint: Path) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} at update {update + 1} of {total}; the last good checkpoint is in {checkpoint}; "
            "lower train.learning_rate"
        )


def _backward(
    optimizer: Optimizer,
    examples: Sequence[Example],
    rows: Sequence[Row],
    config: TrainConfig,
    loss_fn: Loss,
    metrics_fn: Metrics,
    usual: float,
    pad: int,
    device: torch.device,
) -> tuple[float, dict[str, float]]:
    """Add the gradient of one update, in parts of at most `batch_tokens`; the mean loss over its targets and means of
    the metrics. Every process runs as many parts, the last of them perhaps at weight 0."""
    total, weight = 0.0, 0.0
    seen: dict[str, float] = {}
    parts = _parts(examples, rows, config.batch_tokens)
    passes = -(-len(parts) // world_size())
    for number in range(passes):
        place = number * world_size() + rank()
        share = 1.0 if place < len(parts) else 0.0
        batch = collate(examples, parts[min(place, len(parts) - 1)], pad).to(device)
        last = number + 1 == passes
        with optimizer.part(last=last), _precision(config, device):
            logits_NV = optimizer.learner(batch)
            loss = loss_fn(logits_NV, batch.targets) * share
            torch.autograd.backward(loss * world_size() / usual)  # processes average their gradients
        total += loss.item()
        weight += share * float(batch.targets.weight_N.sum())
        for name, value in metrics_fn(logits_NV.detach(), batch.targets).items():
            seen[name] = seen.get(name, 0.0) + share * float(value)
    total, weight, *sums = all_reduce(total, weight, *seen.values())
    mean = max(weight, 1e-12)
    return total / mean, {name: value / mean for name, value in zip(seen, sums, strict=True)}


def _parts(examples: Sequence[Example], rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows in parts of about `batch_tokens`, at least one a process where there are as many rows; groups are not taken
    apart, since their rows count as one part."""
    if examples[rows[0][0]].group >= 0:
        return [list(rows)]
    width = max(sum(len(examples[document].ids_T) for document in row) for row in rows)
    most = max(1, min(batch_tokens // width, -(-len(rows) // world_size())))
    return [list(rows[start : start + most]) for start in range(0, len(rows), most)]


def _precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where it helps: on accelerators, and where it is asked for."""
    wanted = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def _plan(epochs: Sequence[Sequence[Example]], update_tokens: int, seed: int) -> Iterator[tuple[int, int, list[Row]]]:
    """Every update of the run as (number, epoch, rows of document indices); a function of the seed."""
    update = 0
    for epoch, examples in enumerate(epochs):
        for rows in _packed(examples, update_tokens, seed, epoch):
            yield update, epoch, rows
            update += 1


def _packed(examples: Sequence[Example], update_tokens: int, seed: int, epoch: int) -> list[list[Row]]:
    chance, lengths, groups = np.random.default_rng([seed, epoch]), lengths_of(examples), groups_of(examples)
    if any(group >= 0 for group in groups):
        return pack_groups(lengths, groups, update_tokens, chance)
    return pack(lengths, update_tokens, chance)


def _edges(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the first and the last twentieth of the updates."""
    edge = max(1, len(measured) // 20)
    ends = {"first": measured[:edge], "last": measured[-edge:]}
    return {
        f"{name}_{key}": sum(metrics[key] for metrics in some) / len(some)
        for name, some in ends.items()
        for key in (measured[0] if measured else ())
    }


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a transformer, each sharded by itself."""
    lists = [list(part) for part in model.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=_numbers, default=[])


def _numbers(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
