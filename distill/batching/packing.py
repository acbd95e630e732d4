"""Sequence packing: short windows share a row, and attention never crosses from one to another.

Transformers isolates packed documents by their position ids, but only without a cache and without an attention
mask; with either, documents read each other silently. `tests/test_packing.py` holds the packed loss to the unpacked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from flywheel.agents.inference.prefix_cache import vocabulary_layer
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.row_store import lengths_of
from flywheel.distill.batching.target_states import fits, narrow_states

POOL = 256
"""Documents that are packed against each other."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The N tokens of a batch that are learned: next_N, weight_N, which document each lies in, columns (N, …)."""

    next_N: Tensor
    weight_N: Tensor
    document_N: Tensor
    columns: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Packed rows. ids_BT, positions_BT (restart at each document), predict_BT: is the *next* token a target?

    `targets` are in the order of predict_BT's True entries.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    predict_BT: Tensor
    targets: Targets

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device."""
        moved = {name: column.to(device) for name, column in self.targets.columns.items()}
        original = self.targets
        targets = Targets(
            original.next_N.to(device), original.weight_N.to(device), original.document_N.to(device), moved
        )
        return PackedBatch(self.ids_BT.to(device), self.positions_BT.to(device), self.predict_BT.to(device), targets)


def pack(lengths: Sequence[int], batch_tokens: int, chance: np.random.Generator) -> list[list[list[int]]]:
    """An epoch as batches of rows of document indices, in random order; every document occurs once.

    A batch's rows are as wide as its longest document, and as many as `batch_tokens` hold. Documents are drawn in
    random pools; within a pool, each row takes the longest document that still fits (best fit, decreasing), so that
    rows are nearly full and seldom need to be longer than one document: attention costs the square of their width.
    """
    order = chance.permutation(len(lengths)).tolist()
    batches: list[list[list[int]]] = []
    for start in range(0, len(order), POOL):
        pool = sorted(order[start : start + POOL], key=lengths.__getitem__)
        while pool:
            width = lengths[pool[-1]]
            rows = [_fill(pool, lengths, width) for _ in range(max(1, batch_tokens // width)) if pool]
            batches.append(rows)
    chance.shuffle(batches)
    return batches


def _fill(pool: list[int], lengths: Sequence[int], room: int) -> list[int]:
    """Move documents from the pool, which is sorted by length, into one row."""
    row = []
    while fitting := bisect_right(pool, room, key=lengths.__getitem__):
        row.append(pool.pop(fitting - 1))
        room -= lengths[row[-1]]
    return row


def pack_groups(
    lengths: Sequence[int], groups: Sequence[int], batch_tokens: int, chance: np.random.Generator
) -> list[list[list[int]]]:
    """As `pack`, with the documents of a group in one batch, which may make it larger."""
    members: dict[int, list[int]] = {}
    for document, group in enumerate(groups):
        members.setdefault(group, []).append(document)
    whole = list(members.values())
    batches: list[list[list[int]]] = []
    waiting: list[int] = []
    for place in chance.permutation(len(whole)).tolist():
        if waiting and sum(lengths[member] for member in [*waiting, *whole[place]]) > batch_tokens:
            batches.append(_rows(waiting, lengths))
            waiting = []
        waiting += whole[place]
    return [*batches, _rows(waiting, lengths)] if waiting else batches


def _rows(documents: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    pool = sorted(documents, key=lengths.__getitem__)
    width = lengths[pool[-1]]
    rows = []
    while pool:
        rows.append(_fill(pool, lengths, width))
    return rows


def collate(examples: Sequence[Example], rows: Sequence[Sequence[int]], pad: int) -> PackedBatch:
    """Rows of document indices → tensors. Padding forms a document of its own that predicts nothing."""
    row_length = max(sum(len(examples[document].ids_T) for document in row) for row in rows)
    ids = np.full((len(rows), row_length), pad, np.int64)
    positions = np.zeros((len(rows), row_length), np.int64)
    predict = np.zeros((len(rows), row_length), np.bool_)
    learned = []
    for row, documents in enumerate(rows):
        cursor = 0
        for document in documents:
            example = examples[document]
            span = slice(cursor, cursor + len(example.ids_T))
            ids[row, span] = example.ids_T
            positions[row, span] = np.arange(len(example.ids_T))
            wanted = np.flatnonzero(example.weight_T[1:])
            predict[row, cursor + wanted] = True
            learned.append((example, document, wanted + 1))
            cursor = span.stop
        positions[row, cursor:] = np.arange(row_length - cursor)
    targets = Targets(
        next_N=torch.from_numpy(np.concatenate([packed.ids_T[at] for packed, _, at in learned]).astype(np.int64)),
        weight_N=torch.from_numpy(np.concatenate([packed.weight_T[at] for packed, _, at in learned])),
        document_N=torch.from_numpy(
            np.repeat([document for _, document, _ in learned], [len(at) for *_, at in learned])
        ),
        columns={
            name: torch.from_numpy(np.concatenate([packed.columns[name][at] for packed, _, at in learned]))
            for name in learned[0][0].columns
        },
    )
    return PackedBatch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(predict), targets)


def batches(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int, pad: int) -> Iterator[PackedBatch]:
    """All examples once, on the model's device, for what is no training; always in the same order."""
    for rows in pack(lengths_of(examples), batch_tokens, np.random.default_rng(0)):
        yield collate(examples, rows, pad).to(model.device)


def by_document(batch: PackedBatch, values_N: Tensor) -> Iterator[tuple[int, NDArray[Any]]]:
    """(document, its part of what was found of the targets): those of a document lie together."""
    documents, counts = torch.unique_consecutive(batch.targets.document_N, return_counts=True)
    yield from zip(
        documents.tolist(), (part.cpu().numpy() for part in torch.split(values_N, counts.tolist())), strict=True
    )


def said(logits_NV: Tensor, targets: Targets) -> Tensor:
    """(N,): log-probability of the targets over the whole vocabulary."""
    return -cross_entropy(logits_NV, targets.next_N, reduction="none")


@torch.inference_mode()
def token_logprobs(
    model: PreTrainedModel,
    examples: Sequence[Example],
    batch_tokens: int,
    pad: int,
    score: Callable[[Tensor, Targets], Tensor] = said,
) -> list[NDArray[np.float32]]:
    """(T,) of each example: log-probability of its targets under a model, as `score` has it; 0 elsewhere."""
    model.train(False)
    logprobs = [np.zeros(len(example.ids_T), np.float32) for example in examples]
    for batch in batches(model, examples, batch_tokens, pad):
        for document, target_logprobs in by_document(batch, score(target_logits(model, batch), batch.targets)):
            logprobs[document][np.flatnonzero(examples[document].weight_T[1:]) + 1] = target_logprobs
    return logprobs


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """(B, T, D) of the last layer, each document blind to the others."""
    states_BTD: Tensor = model.base_model(
        input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False
    ).last_hidden_state
    return states_BTD


def target_states(model: PreTrainedModel, batch: PackedBatch, *, narrow: bool = True) -> Tensor:
    """(N, D) of the last layer before the targets; if `narrow`, no more of that layer is computed than they need."""
    if narrow and fits(model):
        return narrow_states(model, batch.ids_BT, batch.positions_BT, batch.predict_BT)
    return hidden_states(model, batch)[batch.predict_BT]


def target_logits(model: PreTrainedModel, batch: PackedBatch, *, narrow: bool = True) -> Tensor:
    """(N, V) in fp32, of the tokens before the targets: no others reach the output projection."""
    logits_NV: Tensor = vocabulary_layer(model)(target_states(model, batch, narrow=narrow))
    return logits_NV.float()
