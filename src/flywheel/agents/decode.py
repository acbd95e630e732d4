"""Batched decoding for students: constrained to listed options, or free.

Shapes: B rows that are still open, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flywheel.agents.reader import Reader

Trie = dict[int, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which option won, and the log-probability of each of its tokens among those that the options allowed."""

    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """Some options as a tree of their tokens, and the place of each. None may be a prefix of another."""

    root: Trie
    place: Mapping[tuple[int, ...], int]


def options_of(rows: Sequence[Sequence[int]]) -> Options:
    """Options by their token ids."""
    root: Trie = {}
    for option in rows:
        node = root
        for token in option:
            node = node.setdefault(token, {})
    return Options(root, {tuple(option): number for number, option in reversed(list(enumerate(rows)))})


@torch.inference_mode()
def choose(
    reader: Reader,
    slots: Sequence[int],
    contexts: Sequence[Sequence[int]],
    options: Sequence[Options],
    *,
    temperature: float = 0.0,
    chances: Sequence[torch.Generator] | None = None,
) -> list[Choice]:
    """For each slot's context the best of its own options, token by token along the tree of the options.

    Greedy at temperature 0. Tokens without an alternative cost no forward pass of their own: they are read with the
    next one that has, and once a single option is left, it has won. `chances`: a generator a row, so that what is drawn
    for one does not depend on what runs beside it.
    """
    said: list[list[int]] = [[] for _ in contexts]
    nodes = [_follow(row.root, tokens) for row, tokens in zip(options, said, strict=True)]
    logprobs = [[0.0] * len(tokens) for tokens in said]
    rows = [row for row, node in enumerate(nodes) if node]
    if rows:
        logits_BV = reader.read([slots[row] for row in rows], [[*contexts[row], *said[row]] for row in rows]).numpy()
    while rows:
        unread: dict[int, list[int]] = {}
        for row, logits_V in zip(rows, logits_BV, strict=True):
            allowed = list(nodes[row])
            scores = _log_softmax(logits_V[allowed])
            pick = _pick(scores, temperature, chances[row] if chances else None)
            unread[row] = [allowed[pick]]
            nodes[row] = _follow(nodes[row][allowed[pick]], unread[row])
            said[row] += unread[row]
            logprobs[row] += [float(scores[pick]), *[0.0] * (len(unread[row]) - 1)]
        rows = [row for row in rows if nodes[row]]
        if rows:
            logits_BV = reader.feed([slots[row] for row in rows], [unread[row] for row in rows]).numpy()
    return [
        Choice(row.place[tuple(tokens)], tuple(tokens), tuple(values))
        for row, tokens, values in zip(options, said, logprobs, strict=True)
    ]


def _follow(node: Trie, said: list[int]) -> Trie:
    """Go on while there is no choice; the node where there is one again, or the end."""
    while len(node) == 1:
        ((token, node),) = node.items()
        said.append(token)
    return node


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
        logprobs_BV = logits_BV.log_softmax(-1).numpy()
        going = []
        for row, logprobs_V in zip(rows, logprobs_BV, strict=True):
            token = _pick(logprobs_V, temperature, chances[row] if chances else None)
            logprobs[row].append(float(logprobs_V[token]))
            if token != end:
                said[row].append(token)
                going.append(row)
        rows = [row for row in going if len(said[row]) < max_tokens]
        if rows:
            logits_BV = reader.feed([slots[row] for row in rows], [said[row][-1:] for row in rows])
    return [(tuple(tokens), tuple(values)) for tokens, values in zip(said, logprobs, strict=True)]


def _log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = scores - scores.max()
    normal: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return normal


def _pick(scores: NDArray[np.float32], temperature: float, generator: torch.Generator | None) -> int:
    if temperature <= 0:
        return int(scores.argmax())
    weights = (torch.from_numpy(scores) / temperature).softmax(-1)
    return int(torch.multinomial(weights, 1, generator=generator))
