"""Packing: many short windows in one row of fixed length, each blind to the others.

Transformers isolates packed documents by their position ids, but only without a cache and without an attention
mask; with either, documents read each other silently. `tests/test_packing.py` holds the packed loss to the unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flywheel.distill.examples import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows. ids_BT, positions_BT (restart at each document), predict_BT: is the *next* token a target?"""

    ids_BT: Tensor
    positions_BT: Tensor
    predict_BT: Tensor
    targets: int


def pack(lengths: Sequence[int], order: Sequence[int], row_length: int) -> list[list[int]]:
    """First-fit of documents, in the given order, into rows of `row_length` tokens; looks at the last 32 rows."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in order:
        for row in range(max(0, len(rows) - 32), len(rows)):
            if room[row] >= lengths[index]:
                break
        else:
            row = len(rows)
            rows.append([])
            room.append(row_length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def collate(examples: Sequence[Example], rows: Sequence[Sequence[int]], row_length: int, pad: int) -> Batch:
    """Rows of document indices → tensors. Padding forms a document of its own that predicts nothing."""
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
