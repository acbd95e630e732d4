"""Raw completions of one model, many requests at once: what a planner or an executor says after given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.agents.reader import Reader

SLOTS = 64
"""Contexts whose keys and values are kept."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks for."""

    prompt: tuple[int, ...]
    max_tokens: int = 16
    temperature: float = 0.0
    seed: int = 0
    allowed: tuple[int, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    ends: frozenset[int] = frozenset()


@dataclass(slots=True)
class Said:
    """The tokens of an answer, each with its log-probability among those allowed. An end marker is the last one."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


class Completer:
    """One model with the contexts that it has read last. `act` is called by one thread at a time."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        model.train(False)
        self.tokenizer = tokenizer
        self._reader = Reader(model)
        self._read: dict[int, tuple[int, ...]] = {}

    @torch.inference_mode()
    def act(self, wishes: Sequence[Wish]) -> list[Said]:
        answers: list[Said] = []
        for start in range(0, len(wishes), SLOTS):
            answers += self._together(wishes[start : start + SLOTS])
        return answers

    def _together(self, wishes: Sequence[Wish]) -> list[Said]:
        slots = self._seated([wish.prompt for wish in wishes])
        chances = [torch.Generator().manual_seed(wish.seed) for wish in wishes]
        said = [Said() for _ in wishes]
        rows = [row for row, wish in enumerate(wishes) if wish.max_tokens > 0]
        if rows:
            logits_BV = self._reader.read([slots[row] for row in rows], [wishes[row].prompt for row in rows])
        while rows:
            going = []
            for row, logits_V in zip(rows, logits_BV, strict=True):
                token, logprob = _picked(logits_V, wishes[row], chances[row])
                said[row].tokens.append(token)
                said[row].logprobs.append(logprob)
                if token in wishes[row].ends:
                    said[row].finish_reason = "stop"
                elif len(said[row].tokens) < wishes[row].max_tokens:
                    going.append(row)
            rows = going
            if rows:
                logits_BV = self._reader.feed([slots[row] for row in rows], [said[row].tokens[-1:] for row in rows])
        for slot, wish, one in zip(slots, wishes, said, strict=True):
            self._read[slot] = (*wish.prompt, *one.tokens)
        return said

    def _seated(self, prompts: Sequence[tuple[int, ...]]) -> list[int]:
        """A slot for each prompt, the one that has read most of it if that is free."""
        free = dict.fromkeys([*self._read, *(slot for slot in range(SLOTS) if slot not in self._read)])
        seats = []
        for prompt in prompts:
            best = max(free, key=lambda slot: _common(self._read.get(slot, ()), prompt))
            del free[best]
            self._read.pop(best, None)
            seats.append(best)
        return seats


def _picked(logits_V: Tensor, wish: Wish, chance: torch.Generator) -> tuple[int, float]:
    scores_V = logits_V.clone()
    for token, bias in wish.bias:
        scores_V[token] += bias
    if wish.allowed:
        kept = torch.full_like(scores_V, -torch.inf)
        kept[list(wish.allowed)] = scores_V[list(wish.allowed)]
        scores_V = kept
    logprobs_V = scores_V.log_softmax(-1)
    if wish.temperature <= 0:
        token = int(logprobs_V.argmax())
    else:
        token = int(torch.multinomial((scores_V / wish.temperature).softmax(-1), 1, generator=chance))
    return token, float(logprobs_V[token])


def _common(read: Sequence[int], prompt: Sequence[int]) -> int:
    return next((place for place, (a, b) in enumerate(zip(read, prompt, strict=False)) if a != b), len(read))
