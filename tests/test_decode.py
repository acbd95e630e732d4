"""Constrained decoding picks what walking the options token by token would pick; batching changes nothing."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from flywheel.agents.contexts.action_mask import ActionMask
from flywheel.agents.contexts.prompts import END
from flywheel.agents.contexts.tokenization import token_id
from flywheel.agents.inference.decoding import choose, generate, options_of
from flywheel.agents.inference.kv_cache import GROUP_TOKENS, groups
from flywheel.agents.inference.prefix_cache import PASS_ROWS, PrefixCache
from flywheel.agents.inference.token_shift import register_models
from flywheel.config.student import StudentConfig
from flywheel.environments.protocol import Observation
from flywheel.errors import ConfigError
from flywheel.policies.models import new_model
from flywheel.policies.tokenizer import train_tokenizer

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
    picks = choose(PrefixCache(model), range(12), contexts, [options_of(OPTIONS)] * 12)
    for context, pick in zip(contexts, picks, strict=True):
        assert list(pick.tokens) == _walk(model, context, OPTIONS) == OPTIONS[pick.index]
        assert len(pick.logprobs) == len(pick.tokens)
        assert all(value <= 0 for value in pick.logprobs)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch(model: PreTrainedModel) -> None:
    contexts = _contexts(6)
    together = generate(PrefixCache(model), range(6), contexts, end=END_ID, max_tokens=8)
    for context, (tokens, logprobs) in zip(contexts, together, strict=True):
        ((alone, values),) = generate(PrefixCache(model), [0], [context], end=END_ID, max_tokens=8)
        assert tokens == alone
        assert logprobs == pytest.approx(values, abs=1e-4)


@torch.inference_mode()
def test_what_must_never_be_said_is_not(model: PreTrainedModel) -> None:
    contexts = _contexts(6)
    said = {
        token
        for tokens, _ in generate(PrefixCache(model), range(6), contexts, end=END_ID, max_tokens=8)
        for token in tokens
    }
    again = generate(PrefixCache(model), range(6), contexts, end=END_ID, max_tokens=8, never=sorted(said))
    assert said
    assert not said & {token for tokens, _ in again for token in tokens}


SHAPE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
GROUPED = {**SHAPE, "num_attention_heads": 4, "num_key_value_heads": 2}


@torch.inference_mode()
@pytest.mark.parametrize("most", [20, 4096])
@pytest.mark.parametrize(
    "config",
    [
        None,
        Qwen3Config(**GROUPED, head_dim=8),
        LlamaConfig(**GROUPED),
        MistralConfig(**GROUPED, sliding_window=5),
        Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ],
    ids=["student", "plain Qwen3", "grouped queries", "sliding window", "one layer with a window"],
)
def test_what_was_read_before_changes_nothing(
    model: PreTrainedModel, config: PretrainedConfig | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts grow, start anew and share slots with strangers; logits stay those of a fresh forward pass."""
    if config is not None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    monkeypatch.setattr("flywheel.agents.inference.prefix_cache.PASS_TOKENS", most)
    chance = np.random.default_rng(2)
    reader = PrefixCache(model)
    contexts = dict(enumerate(_contexts(PASS_ROWS + 6)))
    for _ in range(8):
        slots = chance.choice(len(contexts), PASS_ROWS + 2, replace=False).tolist()
        for slot in slots:
            kept = contexts[slot][: chance.integers(0, len(contexts[slot]) + 1)] if chance.random() < 0.3 else None
            new = chance.integers(12, len(TOKENIZER), chance.integers(1, 12)).tolist()
            contexts[slot] = [*(contexts[slot] if kept is None else kept), *new]
        logits = reader.read(slots, [contexts[slot] for slot in slots])
        for slot, logits_V in zip(slots, logits, strict=True):
            assert torch.allclose(logits_V, model(torch.tensor([contexts[slot]])).logits[0, -1], atol=1e-4)


@torch.inference_mode()
def test_transformers_reads_a_token_shift_with_and_without_its_cache(model: PreTrainedModel, tmp_path: Path) -> None:
    """Loaded by the Auto class, padded on the left, with beams: what is generated does not depend on the cache."""
    model.save_pretrained(tmp_path)
    register_models()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([_contexts(1)[0][-3:], [0, *_contexts(2)[1][-2:]]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    for beams in (1, 3):
        written = [
            loaded.generate(
                ids, attention_mask=mask, max_new_tokens=8, do_sample=False, num_beams=beams, use_cache=use_cache
            )
            for use_cache in (True, False)
        ]
        assert written[0].tolist() == written[1].tolist()
    ((tokens, _),) = generate(PrefixCache(model), [0], [ids[0].tolist()], end=END_ID, max_tokens=8)
    greedy = loaded.generate(ids[:1], max_new_tokens=8, do_sample=False)[0, 3:].tolist()
    assert list(tokens) == [token for token in greedy if token != END_ID]


@torch.inference_mode()
def test_a_token_whose_predecessor_is_unknown_is_not_read(model: PreTrainedModel) -> None:
    cache = model(torch.tensor([[12, 13]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="before_ids"):
        model(torch.tensor([[14]]), past_key_values=cache)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 1, 32))
    whole = model(torch.tensor([[12, 13, 14]])).logits[0, -1]
    step = model(torch.tensor([[14]]), past_key_values=cache, before_ids=torch.tensor([[13]])).logits[0, -1]
    assert torch.allclose(whole, step, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (StableLmConfig(**SHAPE, num_attention_heads=2, num_key_value_heads=2), "do not hand on"),
        (GPTJConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=2, rotary_dim=8), "cannot be exchanged"),
    ],
    ids=["stablelm", "gptj"],
)
def test_a_model_whose_contexts_would_mix_is_refused(config: PretrainedConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        PrefixCache(AutoModelForCausalLM.from_config(config).eval()).read([0, 1], [[12, 13, 14], [15, 16]])


@torch.inference_mode()
def test_a_pass_that_failed_leaves_nothing_wrong_behind(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PrefixCache(model)
    reader.read([0], [[20, 21, 22, 23]])
    with monkeypatch.context() as patch:
        patch.setattr(model.base_model.norm, "forward", lambda hidden: hidden / 0 + [])
        with pytest.raises(TypeError):
            reader.read([0], [[20, 30, 31, 32]])
    logits_BV = reader.read([0], [[20, 21, 22, 23, 24]])
    assert torch.allclose(logits_BV[0], model(torch.tensor([[20, 21, 22, 23, 24]])).logits[0, -1], atol=1e-4)


def test_a_model_that_was_read_trains_as_before() -> None:
    """Padded batches keep their mask."""
    fresh, read = (
        new_model(StudentConfig(hidden=32, layers=2, heads=2, vocabulary=300), TOKENIZER, 3) for _ in range(2)
    )
    generate(PrefixCache(read), range(6), _contexts(6), end=END_ID, max_tokens=2)
    ids_BT = torch.randint(12, len(TOKENIZER), (3, 9), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 7 + [0] * 2])
    losses = []
    for one in (fresh, read):
        loss = one(ids_BT, attention_mask=mask_BT, labels=ids_BT).loss
        loss.backward()
        losses.append((loss.item(), [weight.grad for weight in one.parameters()]))
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1], strict=True))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9).map(sorted))
def test_groups_are_the_cheapest(lengths: list[int]) -> None:
    def cost(cuts: list[tuple[int, int]]) -> int:
        return sum(GROUP_TOKENS + (end - start) * lengths[end - 1] for start, end in cuts)

    inner = range(1, len(lengths))
    every = (
        list(pairwise([0, *cuts, len(lengths)])) for count in range(len(lengths)) for cuts in combinations(inner, count)
    )
    found = groups(lengths)
    assert [0, *(end for _, end in found)] == [*(start for start, _ in found), len(lengths)]
    assert cost(found) == min(map(cost, every))


def test_the_guard_offers_nothing_that_changed_nothing() -> None:
    guard = ActionMask(max_repeats=2)
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
