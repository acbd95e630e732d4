"""Constrained decoding picks what walking the options token by token would pick; batching changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from flywheel.agents.decode import choose, generate, options_of
from flywheel.agents.guard import Guard
from flywheel.agents.prompts import END
from flywheel.agents.reader import Reader
from flywheel.agents.slots import MAX_ROWS
from flywheel.agents.tokens import token_id
from flywheel.config_distill import StudentConfig
from flywheel.distill.models import new_model
from flywheel.distill.tokenizer import train_tokenizer
from flywheel.environments.protocol import Observation

TOKENIZER = train_tokenizer(["take the carrot. open the fridge. move north."], [], 300)
END_ID = token_id(TOKENIZER, END)
OPTIONS = [
    [*TOKENIZER.encode(text, add_special_tokens=False), END_ID]
    for text in ("take carrot", "take fridge", "open fridge", "move north", "move", "take carrot now")
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return new_model(StudentConfig(hidden=32, layers=2, heads=2, vocabulary=300), TOKENIZER, 3).eval()


def _contexts(count: int) -> list[list[int]]:
    chance = np.random.default_rng(1)
    return [chance.integers(12, len(TOKENIZER), n).tolist() for n in chance.integers(3, 40, count).tolist()]


def _walk(model: PreTrainedModel, context: list[int], options: list[list[int]]) -> list[int]:
    """The slow way: at each token, the best among those that some option allows."""
    said: list[int] = []
    while True:
        allowed = sorted(
            {option[len(said)] for option in options if option[: len(said)] == said and len(option) > len(said)}
        )
        if not allowed:
            return said
        logits = model(torch.tensor([context + said])).logits[0, -1]
        said.append(allowed[int(logits[allowed].argmax())])


@torch.inference_mode()
def test_choose_equals_walking_the_options(model: PreTrainedModel) -> None:
    contexts = _contexts(12)
    picks = choose(Reader(model), range(12), contexts, [options_of(OPTIONS)] * 12)
    for context, pick in zip(contexts, picks, strict=True):
        assert list(pick.tokens) == _walk(model, context, OPTIONS) == OPTIONS[pick.index]
        assert len(pick.logprobs) == len(pick.tokens)
        assert all(value <= 0 for value in pick.logprobs)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch(model: PreTrainedModel) -> None:
    contexts = _contexts(6)
    together = generate(Reader(model), range(6), contexts, end=END_ID, max_tokens=8)
    for context, (tokens, logprobs) in zip(contexts, together, strict=True):
        ((alone, values),) = generate(Reader(model), [0], [context], end=END_ID, max_tokens=8)
        assert tokens == alone
        assert logprobs == pytest.approx(values, abs=1e-4)


@torch.inference_mode()
def test_what_must_never_be_said_is_not(model: PreTrainedModel) -> None:
    contexts = _contexts(6)
    said = {
        token for tokens, _ in generate(Reader(model), range(6), contexts, end=END_ID, max_tokens=8) for token in tokens
    }
    again = generate(Reader(model), range(6), contexts, end=END_ID, max_tokens=8, never=sorted(said))
    assert said
    assert not said & {token for tokens, _ in again for token in tokens}


@torch.inference_mode()
def test_what_was_read_before_changes_nothing(model: PreTrainedModel) -> None:
    """Contexts grow, start anew and share slots with strangers; logits stay those of a fresh forward pass."""
    chance = np.random.default_rng(2)
    reader = Reader(model)
    contexts = dict(enumerate(_contexts(MAX_ROWS + 6)))
    for _ in range(8):
        slots = chance.choice(len(contexts), MAX_ROWS + 2, replace=False).tolist()
        for slot in slots:
            kept = contexts[slot][: chance.integers(0, len(contexts[slot]) + 1)] if chance.random() < 0.3 else None
            new = chance.integers(12, len(TOKENIZER), chance.integers(1, 12)).tolist()
            contexts[slot] = [*(contexts[slot] if kept is None else kept), *new]
        logits = reader.read(slots, [contexts[slot] for slot in slots])
        for slot, logits_V in zip(slots, logits, strict=True):
            assert torch.allclose(logits_V, model(torch.tensor([contexts[slot]])).logits[0, -1], atol=1e-4)


def test_the_guard_offers_nothing_that_changed_nothing() -> None:
    guard = Guard(max_repeats=2)
    here, there = (Observation(key, state_key=key, valid_actions=("a", "b", "c")) for key in ("here", "there"))
    assert guard.offer(here) == ["a", "b", "c"]
    guard.took(here, "a")
    assert guard.offer(here) == ["b", "c"]
    guard.took(here, "b")
    assert guard.offer(there) == ["a", "b", "c"]
    guard.took(there, "c")
    assert guard.offer(here) == ["b", "c"]
    guard.took(here, "b")
    assert guard.offer(there) == ["a", "b", "c"]
    guard.took(there, "c")
    assert guard.offer(here) == ["c"]
