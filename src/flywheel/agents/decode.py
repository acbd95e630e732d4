"""Batched decoding for students: constrained to listed options, or free.

Shapes: B contexts, T context tokens (left-padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

Trie = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which option won, and the log-probability of each of its tokens among those that the options allowed."""

    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class _Stream:
    """Incremental forward passes over B rows that share a key-value cache."""

    def __init__(self, model: PreTrainedModel, contexts: Sequence[Sequence[int]], pad: int) -> None:
        width = max(map(len, contexts))
        ids_BT = torch.tensor([[pad] * (width - len(row)) + list(row) for row in contexts])
        self._mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in contexts])
        self._cache = DynamicCache(config=model.config)
        self._model = model
        self.logits_BV = self._forward(ids_BT)

    def _forward(self, ids_BT: Tensor) -> Tensor:
        device = self._model.device
        positions_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        output = self._model(
            input_ids=ids_BT.to(device),
            attention_mask=self._mask_BT.to(device),
            position_ids=positions_BT.to(device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = output.logits[:, -1].float().cpu()
        return logits_BV

    def feed(self, tokens: Sequence[int]) -> None:
        """Append one token to every row."""
        self._mask_BT = torch.cat([self._mask_BT, torch.ones(len(tokens), 1, dtype=torch.long)], 1)
        self.logits_BV = self._forward(torch.tensor(tokens)[:, None])


@torch.inference_mode()
def choose(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    pad: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Choice]:
    """For each context the best of its own options, token by token along the trie of the options.

    No option may be a prefix of another (an end marker sees to that). Greedy at temperature 0. Tokens without an
    alternative cost no forward pass: once a single option is left, it has won.
    """
    tries = [_trie(row) for row in options]
    nodes: list[Trie] = list(tries)
    said: list[list[int]] = [[] for _ in contexts]
    logprobs: list[list[float]] = [[] for _ in contexts]
    stream = _Stream(model, contexts, pad)
    while True:
        for row, node in enumerate(nodes):
            if not node:
                continue
            allowed = list(node)
            scores = stream.logits_BV[row, allowed].log_softmax(-1)
            pick = _pick(scores, temperature, generator)
            said[row].append(allowed[pick])
            logprobs[row].append(float(scores[pick]))
            nodes[row] = node[allowed[pick]]
        if not any(_branches(node) for node in nodes):
            break
        stream.feed([tokens[-1] if node else pad for tokens, node in zip(said, nodes, strict=True)])
    choices = []
    for row, node in enumerate(nodes):
        rest = _only_path(node)
        tokens = (*said[row], *rest)
        index = [tuple(option) for option in options[row]].index(tokens)
        choices.append(Choice(index, tokens, (*logprobs[row], *([0.0] * len(rest)))))
    return choices


@torch.inference_mode()
def generate(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], *, pad: int, end: int, max_tokens: int
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Greedy free decoding: for each context (tokens without the end marker, their log-probabilities)."""
    stream = _Stream(model, contexts, pad)
    said: list[list[int]] = [[] for _ in contexts]
    logprobs: list[list[float]] = [[] for _ in contexts]
    open_rows = set(range(len(contexts)))
    for _ in range(max_tokens):
        scores_BV = stream.logits_BV.log_softmax(-1)
        best_B = scores_BV.argmax(-1).tolist()
        for row in sorted(open_rows):
            logprobs[row].append(float(scores_BV[row, best_B[row]]))
            if best_B[row] == end:
                open_rows.discard(row)
            else:
                said[row].append(best_B[row])
        if not open_rows:
            break
        stream.feed([best_B[row] if row in open_rows else pad for row in range(len(contexts))])
    return [(tuple(tokens), tuple(values)) for tokens, values in zip(said, logprobs, strict=True)]


def _pick(scores: Tensor, temperature: float, generator: torch.Generator | None) -> int:
    if temperature <= 0:
        return int(scores.argmax())
    return int(torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator))


def _trie(options: Sequence[Sequence[int]]) -> Trie:
    root: Trie = {}
    for option in options:
        node = root
        for token in option:
            node = node.setdefault(token, {})
    return root


def _branches(node: Trie) -> bool:
    """Is there still a choice below this node?"""
    while len(node) == 1:
        node = next(iter(node.values()))
    return len(node) > 1


def _only_path(node: Trie) -> list[int]:
    path = []
    while node:
        token, node = next(iter(node.items()))
        path.append(token)
    return path
