"""Batched decoding for students: constrained to listed options, or free.

Shapes: B rows that are still open, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flywheel.agents.reader import Reader

Trie = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which option won, and the log-probability of each of its tokens among those that the options allowed."""

    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@torch.inference_mode()
def choose(
    reader: Reader,
    slots: Sequence[int],
    contexts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float = 0.0,
    chances: Sequence[torch.Generator] | None = None,
) -> list[Choice]:
    """For each slot's context the best of its own options, token by token along the trie of the options.

    No option may be a prefix of another (an end marker sees to that). Greedy at temperature 0. Tokens without an
    alternative cost no forward pass: once a single option is left, it has won. `chances`: a generator a row, so that
    what is drawn for one does not depend on what runs beside it.
    """
    nodes = [trie(row) for row in options]
    said: list[list[int]] = [[] for _ in contexts]
    logprobs: list[list[float]] = [[] for _ in contexts]
    rows = list(range(len(contexts)))
    logits_BV = reader.read(slots, contexts)
    while rows:
        for row, logits_V in zip(rows, logits_BV, strict=True):
            allowed = list(nodes[row])
            scores = logits_V[allowed].log_softmax(-1)
            pick = _pick(scores, temperature, chances[row] if chances else None)
            said[row].append(allowed[pick])
            logprobs[row].append(float(scores[pick]))
            nodes[row] = nodes[row][allowed[pick]]
        rows = [row for row in rows if branches(nodes[row])]
        if rows:
            logits_BV = reader.feed([slots[row] for row in rows], [said[row][-1] for row in rows])
    choices = []
    for row, node in enumerate(nodes):
        rest = only_path(node)
        tokens = (*said[row], *rest)
        index = [tuple(option) for option in options[row]].index(tokens)
        choices.append(Choice(index, tokens, (*logprobs[row], *([0.0] * len(rest)))))
    return choices


@torch.inference_mode()
def generate(
    reader: Reader,
    slots: Sequence[int],
    contexts: Sequence[Sequence[int]],
    *,
    end: int,
    max_tokens: int,
    never: Sequence[int] = (),
    temperature: float = 0.0,
    chances: Sequence[torch.Generator] | None = None,
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Free decoding, greedy at temperature 0: for each slot's context (tokens without the end marker, their
    log-probabilities).

    Tokens in `never` are not said: markers in an agent's own words would forge the structure of its contexts.
    """
    said: list[list[int]] = [[] for _ in contexts]
    logprobs: list[list[float]] = [[] for _ in contexts]
    rows = list(range(len(contexts)))
    logits_BV = reader.read(slots, contexts)
    while rows:
        logits_BV[:, list(never)] = -torch.inf
        logprobs_BV = logits_BV.log_softmax(-1)
        going = []
        for row, logprobs_V in zip(rows, logprobs_BV, strict=True):
            token = _pick(logprobs_V, temperature, chances[row] if chances else None)
            logprobs[row].append(float(logprobs_V[token]))
            if token != end:
                said[row].append(token)
                going.append(row)
        rows = [row for row in going if len(said[row]) < max_tokens]
        if rows:
            logits_BV = reader.feed([slots[row] for row in rows], [said[row][-1] for row in rows])
    return [(tuple(tokens), tuple(values)) for tokens, values in zip(said, logprobs, strict=True)]


def _pick(scores: Tensor, temperature: float, generator: torch.Generator | None) -> int:
    if temperature <= 0:
        return int(scores.argmax())
    return int(torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator))


def trie(options: Sequence[Sequence[int]]) -> Trie:
    """Options as a tree of tokens."""
    root: Trie = {}
    for option in options:
        node = root
        for token in option:
            node = node.setdefault(token, {})
    return root


def branches(node: Trie) -> bool:
    """Is there still a choice below this node?"""
    while len(node) == 1:
        node = next(iter(node.values()))
    return len(node) > 1


def only_path(node: Trie) -> list[int]:
    """The tokens below a node without branches."""
    path = []
    while node:
        token, node = next(iter(node.items()))
        path.append(token)
    return path
