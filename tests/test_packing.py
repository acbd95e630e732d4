"""Packing: the packed loss is the unpacked loss, and no document reads another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.config import StudentConfig
from flywheel.distill.examples import Example
from flywheel.distill.packing import collate, pack, packed_loss
from flywheel.distill.students import new_model
from flywheel.distill.tokenizer import train_tokenizer

ROW = 64


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["take the carrot. open the fridge. move north."], ["carrot", "fridge"], 400)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return new_model(StudentConfig(hidden=32, layers=2, heads=2, vocabulary=400), tokenizer, 0)


def _examples(count: int, vocabulary: int) -> list[Example]:
    chance = np.random.default_rng(0)
    lengths = chance.integers(4, 30, count)
    return [
        Example(chance.integers(12, vocabulary, n).astype(np.int32), np.arange(n) % 3 == 1) for n in lengths.tolist()
    ]


def test_packed_loss_is_the_unpacked_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = _examples(24, len(tokenizer))
    rows = pack([len(one.ids_T) for one in examples], range(len(examples)), ROW)
    assert len(rows) < len(examples) / 2
    total, targets = 0.0, 0
    with torch.no_grad():
        packed = packed_loss(model, collate(examples, rows, ROW, 0))
        for one in examples:
            ids = torch.from_numpy(one.ids_T.astype(np.int64))
            logits = model(ids[None]).logits[0, :-1]
            wanted = torch.from_numpy(one.target_T[1:])
            total += float(cross_entropy(logits[wanted], ids[1:][wanted], reduction="sum"))
            targets += int(wanted.sum())
    assert float(packed) == pytest.approx(total / targets, abs=1e-5)


def test_a_document_does_not_read_its_neighbour(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first, other, second = _examples(3, len(tokenizer))

    def hidden_of_second(neighbour: Example) -> torch.Tensor:
        row = [neighbour, second]
        batch = collate(row, [[0, 1]], ROW, 0)
        out = model.base_model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False)
        start = len(neighbour.ids_T)
        hidden: torch.Tensor = out.last_hidden_state[0, start : start + len(second.ids_T)]
        return hidden

    with torch.no_grad():
        assert torch.allclose(hidden_of_second(first), hidden_of_second(other), atol=1e-5)


@given(st.lists(st.integers(1, ROW), min_size=1, max_size=60), st.randoms())
def test_every_document_is_packed_once_and_fits(lengths: list[int], chance: object) -> None:
    order = list(range(len(lengths)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    rows = pack(lengths, order, ROW)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= ROW for row in rows)
