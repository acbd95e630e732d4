"""Packing: short windows share a row, each blind to the others.

Transformers isolates packed documents by their position ids, but only without a cache and without an attention
mask; with either, documents read each other silently. `tests/test_packing.py` holds the packed loss to the unpacked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flywheel.distill.examples import Example

POOL = 256
"""Documents that are packed against each other."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows. ids_BT, positions_BT (restart at each document), predict_BT: is the *next* token a target?"""

    ids_BT: Tensor
    positions_BT: Tensor
    predict_BT: Tensor
    targets: int


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


def collate(examples: Sequence[Example], rows: Sequence[Sequence[int]], pad: int) -> Batch:
    """Rows of document indices → tensors. Padding forms a document of its own that predicts nothing."""
    row_length = max(sum(len(examples[document].ids_T) for document in row) for row in rows)
    ids = np.full((len(rows), row_length), pad, np.int64)
    positions = np.zeros((len(rows), row_length), np.int64)
    predict = np.zeros((len(rows), row_length), np.bool_)
    for row, documents in enumerate(rows):
        cursor = 0
        for document in documents:
            example = examples[document]
            span = slice(cursor, cursor + len(example.ids_T))
            ids[row, span] = example.ids_T
            positions[row, span] = np.arange(len(example.ids_T))
            predict[row, cursor : span.stop - 1] = example.target_T[1:]
            cursor = span.stop
        positions[row, cursor:] = np.arange(row_length - cursor)
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(predict), int(predict.sum()))


def packed_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy over target tokens. Only their hidden states reach the output projection."""
    hidden_BTD = model.base_model(
        input_ids=batch.ids_BT.to(model.device), position_ids=batch.positions_BT.to(model.device), use_cache=False
    ).last_hidden_state
    predict_BT = batch.predict_BT.to(model.device)
    logits_NV = model.lm_head(hidden_BTD[predict_BT])
    next_BT = batch.ids_BT.roll(-1, dims=1).to(model.device)
    return nn.functional.cross_entropy(logits_NV.float(), next_BT[predict_BT])
