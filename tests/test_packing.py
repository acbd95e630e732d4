"""Packing: the packed loss is the unpacked loss, and no document reads another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.config.student import StudentConfig
from flywheel.distill.algorithms.bc import bc_loss
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import collate, hidden_states, pack, pack_groups, target_logits, target_states
from flywheel.policies.models import new_model
from flywheel.policies.tokenizer import train_tokenizer

BATCH = 1024


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["take the carrot. open the fridge. move north."], ["carrot", "fridge"], 400)


@pytest.fixture(scope="module", params=[True, False], ids=["token shift", "plain"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    shape = StudentConfig(hidden=32, layers=2, heads=2, vocabulary=400, token_shift=request.param)
    return new_model(shape, tokenizer, 0)


def _examples(count: int, vocabulary: int) -> list[Example]:
    chance = np.random.default_rng(0)
    lengths = chance.integers(4, 30, count)
    return [
        Example(
            chance.integers(12, vocabulary, n).astype(np.int32), (np.arange(n) % 3 == 1) * chance.random(n, np.float32)
        )
        for n in lengths.tolist()
    ]


def test_packed_loss_is_the_unpacked_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = _examples(24, len(tokenizer))
    lengths = [len(example.ids_T) for example in examples]
    (rows,) = pack(lengths, BATCH, np.random.default_rng(0))
    assert max(len(row) for row in rows) > 1
    total = 0.0
    with torch.no_grad():
        batch = collate(examples, rows, 0)
        packed = bc_loss(target_logits(model, batch), batch.targets)
        for example in examples:
            ids = torch.from_numpy(example.ids_T.astype(np.int64))
            logits = model(ids[None]).logits[0, :-1]
            weight = torch.from_numpy(example.weight_T[1:])
            total += float((weight * cross_entropy(logits, ids[1:], reduction="none")).sum())
    assert float(packed) == pytest.approx(total, rel=1e-5)


def test_a_document_does_not_read_its_neighbour(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first, other, second = _examples(3, len(tokenizer))

    def hidden_of_second(neighbour: Example) -> torch.Tensor:
        row = [neighbour, second]
        batch = collate(row, [[0, 1]], 0)
        start = len(neighbour.ids_T)
        return hidden_states(model, batch)[0, start : start + len(second.ids_T)]

    with torch.no_grad():
        assert torch.allclose(hidden_of_second(first), hidden_of_second(other), atol=1e-5)


def test_the_last_layer_of_the_targets_alone_is_that_of_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    examples = _examples(24, len(tokenizer))
    (rows,) = pack([len(example.ids_T) for example in examples], BATCH, np.random.default_rng(1))
    batch = collate(examples, rows, 0)
    whole, narrow = hidden_states(model, batch)[batch.predict_BT], target_states(model, batch)
    assert torch.allclose(whole, narrow, atol=1e-5)
    gradients = []
    for states in (whole, narrow):
        model.zero_grad()
        (states * torch.arange(states.shape[1])).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-2)


@given(st.lists(st.integers(1, 80), min_size=1, max_size=600), st.integers(20, 400), st.integers(0, 5))
def test_every_document_is_packed_once_and_batches_keep_their_size(
    lengths: list[int], batch_tokens: int, seed: int
) -> None:
    batches = pack(lengths, batch_tokens, np.random.default_rng(seed))
    assert sorted(index for rows in batches for row in rows for index in row) == list(range(len(lengths)))
    for rows in batches:
        width = max(sum(lengths[index] for index in row) for row in rows)
        assert width == max(lengths[index] for row in rows for index in row)
        assert len(rows) * width <= batch_tokens or len(rows) == 1


@given(st.lists(st.tuples(st.integers(1, 80), st.integers(0, 12)), min_size=1, max_size=60), st.integers(20, 400))
def test_groups_stay_together(documents: list[tuple[int, int]], batch_tokens: int) -> None:
    lengths, groups = zip(*documents, strict=True)
    batches = pack_groups(lengths, groups, batch_tokens, np.random.default_rng(0))
    assert sorted(index for rows in batches for row in rows for index in row) == list(range(len(lengths)))
    held = [{groups[index] for row in rows for index in row} for rows in batches]
    assert sum(map(len, held)) == len(set(groups))
    for rows, inside in zip(batches, held, strict=True):
        tokens = sum(lengths[index] for row in rows for index in row)
        assert tokens <= batch_tokens or len(inside) == 1


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(100, 400, 5000).tolist()
    padded = 0
    for rows in pack(lengths, 4096, np.random.default_rng(1)):
        padded += len(rows) * max(sum(lengths[index] for index in row) for row in rows)
    assert sum(lengths) / padded > 0.95
