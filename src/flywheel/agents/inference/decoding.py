"""Batched decoding for students: constrained to listed options, or free.

Shapes: B rows that are still open, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flywheel.agents.inference.grammars import Matcher
from flywheel.agents.inference.prefix_cache import PrefixCache
from flywheel.agents.policy import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """Which option won, and the log-probability of each of its tokens among those that the options allowed."""

    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one row of a batch has no answer. Other rows of the batch are unaffected."""

    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """What was written freely; `text` is None where the model said instead that it is done."""

    text: str | None
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


NOT_FINITE = Fault("the model's scores are not finite")


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the tokens of a row: what is drawn for it does not depend on what runs beside it."""

    sampling: Sampling
    generator: torch.Generator

    def pick(self, scores: NDArray[np.float32]) -> int:
        """The place of a token, by the scores of all that may come next."""
        if self.sampling.temperature <= 0:
            return int(scores.argmax())
        weights = (torch.from_numpy(scores) / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            weights = _nucleus(weights, self.sampling.top_p)
        return int(torch.multinomial(weights, 1, generator=self.generator))


def sampler(sampling: Sampling) -> Sampler:
    """A fresh one."""
    return Sampler(sampling, torch.Generator().manual_seed(sampling.seed))


@dataclass(frozen=True, slots=True)
class Options:
    """Some options, sorted by their tokens, and the place of each among those offered. None may be a prefix of another.

    Options that begin alike lie side by side, so a branch of the tree that they form is a range of them.
    """

    rows: Sequence[tuple[int, ...]]
    place: Mapping[tuple[int, ...], int]


class Branch:
    """Where one row has got to in the tree of its options."""

    def __init__(self, options: Options) -> None:
        self._options, self._start, self._end = options.rows, 0, len(options.rows)
        self.said: list[int] = []
        self._follow()

    @property
    def is_open(self) -> bool:
        """Is there still a choice?"""
        return self._end - self._start > 1

    def ways(self) -> list[int]:
        """The tokens that may come next."""
        depth = len(self.said)
        return list(dict.fromkeys(option[depth] for option in self._options[self._start : self._end]))

    def take(self, token: int) -> list[int]:
        """Say one of them, and whatever follows without a choice."""
        depth = len(self.said)
        places = [place for place in range(self._start, self._end) if self._options[place][depth] == token]
        self._start, self._end = places[0], places[-1] + 1
        self._follow()
        return self.said[depth:]

    def _follow(self) -> None:
        first, last = self._options[self._start], self._options[self._end - 1]
        depth = len(self.said)
        while depth < len(first) and first[depth] == last[depth]:
            depth += 1
        self.said += first[len(self.said) : depth]


def options_of(rows: Sequence[Sequence[int]]) -> Options:
    """Options by their token ids."""
    place = {tuple(option): number for number, option in reversed(list(enumerate(rows)))}
    return Options(sorted(place), place)


@torch.inference_mode()
def choose(
    reader: PrefixCache,
    slots: Sequence[int],
    contexts: Sequence[Sequence[int]],
    options: Sequence[Options],
    *,
    samplers: Sequence[Sampler | None] | None = None,
) -> list[Choice | Fault]:
    """For each slot's context the best of its own options, token by token along the tree of the options.

    Greedy where a row has no sampler. Tokens without an alternative cost no forward pass of their own: they are read
    with the next one that has, and once a single option is left, it has won.
    """
    branches = [Branch(row) for row in options]
    faulty: set[int] = set()
    logprobs = [[0.0] * len(branch.said) for branch in branches]
    rows = [row for row, branch in enumerate(branches) if branch.is_open]
    if rows:
        logits_BV = reader.read([slots[row] for row in rows], [[*contexts[row], *branches[row].said] for row in rows])
    while rows:
        unread: dict[int, list[int]] = {}
        for row, logits_V in zip(rows, logits_BV.numpy(), strict=True):
            allowed = branches[row].ways()
            if not np.isfinite(logits_V[allowed]).all():
                faulty.add(row)
                continue
            scores = _log_softmax(logits_V[allowed])
            pick = _pick(scores, samplers[row] if samplers else None)
            unread[row] = branches[row].take(allowed[pick])
            logprobs[row] += [float(scores[pick]), *[0.0] * (len(unread[row]) - 1)]
        rows = [row for row in rows if branches[row].is_open and row not in faulty]
        if rows:
            logits_BV = reader.feed([slots[row] for row in rows], [unread[row] for row in rows])
    return [
        NOT_FINITE if number in faulty else Choice(row.place[tuple(branch.said)], tuple(branch.said), tuple(values))
        for number, (row, branch, values) in enumerate(zip(options, branches, logprobs, strict=True))
    ]


@torch.inference_mode()
def generate(
    reader: PrefixCache,
    slots: Sequence[int],
    contexts: Sequence[Sequence[int]],
    *,
    end: int,
    max_tokens: int,
    never: Sequence[int] = (),
    only_first: int | None = None,
    matchers: Sequence[Matcher | None] | None = None,
    samplers: Sequence[Sampler | None] | None = None,
) -> list[tuple[tuple[int, ...], tuple[float, ...]] | Fault]:
    """Free decoding, greedy where a row has no sampler: for each slot's context (tokens without the end marker, their
    log-probabilities).

    Tokens in `never` are not said: markers in an agent's own words would forge the structure of its contexts.
    `only_first` may be said as the first token alone, and ends the text. `matchers`: a grammar a row, or None for any
    text; log-probabilities are then those among the tokens that it allows, and what `max_tokens` cut off in the middle
    of a call or of JSON is none.
    """
    generated: list[list[int]] = [[] for _ in contexts]
    faulty, cut = set[int](), set[int]()
    logprobs: list[list[float]] = [[] for _ in contexts]
    rows = list(range(len(contexts)))
    logits_BV = reader.read(slots, contexts)
    while rows:
        later = any(generated[row] for row in rows)
        logits_BV[:, [*never, *([only_first] if later and only_first is not None else [])]] = -torch.inf
        for place, row in enumerate(rows):
            if matchers and (matcher := matchers[row]):
                allowed_V = torch.from_numpy(matcher.allowed())
                if only_first is not None and not later:
                    allowed_V[only_first] = True
                logits_BV[place, : len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
                logits_BV[place, len(allowed_V) :] = -torch.inf
        logprobs_BV = logits_BV.log_softmax(-1).numpy()
        going = []
        for row, logprobs_V in zip(rows, logprobs_BV, strict=True):
            if slots[row] in reader.faulty:
                faulty.add(row)
                continue
            token = _pick(logprobs_V, samplers[row] if samplers else None)
            logprobs[row].append(float(logprobs_V[token]))
            if token != end:
                generated[row].append(token)
            if token not in (end, only_first) and matchers and (matcher := matchers[row]):
                matcher.take(token)
            if token not in (end, only_first):
                going.append(row)
        rows = [row for row in going if len(generated[row]) < max_tokens]
        if rows:
            logits_BV = reader.feed([slots[row] for row in rows], [generated[row][-1:] for row in rows])
    for row, tokens in enumerate(generated):
        if len(tokens) == max_tokens and matchers and (matcher := matchers[row]) and not matcher.is_whole:
            cut.add(row)
    too_long = Fault(f"a call, or JSON, of more than {max_tokens} tokens")
    return [
        NOT_FINITE if row in faulty else too_long if row in cut else (tuple(tokens), tuple(values))
        for row, (tokens, values) in enumerate(zip(generated, logprobs, strict=True))
    ]


def _log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = scores - scores.max()
    normal: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return normal


def _pick(scores: NDArray[np.float32], sampler: Sampler | None) -> int:
    return sampler.pick(scores) if sampler else int(scores.argmax())


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The weights of the likeliest that together reach `top_p`, at least the first; 0 for the others."""
    order = weights.argsort(descending=True)
    before = weights[order].cumsum(-1) - weights[order]
    return weights.index_fill(-1, order[before >= top_p], 0.0)
