"""Raw completions of one model, many requests at once: what a planner or an executor says after given tokens.

Requests join and leave between two tokens (continuous batching, as in Orca, OSDI 2022), and a long prompt is read in
chunks between the tokens of the others (chunked prefill, as in Sarathi, arXiv 2308.16369): nobody waits for a whole
answer of somebody else. One request's fault is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.agents.batching import Batcher
from flywheel.agents.decode import NOT_FINITE
from flywheel.agents.reader import Reader
from flywheel.agents.speaker import longest_context
from flywheel.agents.tokens import most_letters
from flywheel.errors import InfrastructureError

SLOTS = 64
"""Contexts whose keys and values are kept."""
CHUNK_TOKENS = 512
"""Tokens of prompts that are read between two tokens of the answers under way."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What one request asks for. `top`: how many of the likeliest tokens to tell at each token."""

    prompt: tuple[int, ...]
    max_tokens: int = 16
    temperature: float = 0.0
    seed: int = 0
    allowed: tuple[int, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    ends: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    top: int = 0


@dataclass(slots=True)
class Completion:
    """The tokens of an answer, each with its log-probability among those allowed; `top`: the likeliest at each, where
    they were asked for. `marked`: the last one is an end marker."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    finish_reason: str = "length"
    marked: bool = False

    @property
    def shown(self) -> list[int]:
        """The tokens that a reader sees."""
        return self.tokens[:-1] if self.marked else self.tokens


@dataclass(slots=True, eq=False)
class _Job:
    """A request under way: `read` tokens of its prompt are read so far."""

    request: GenerationRequest
    future: asyncio.Future[Completion]
    chance: torch.Generator
    said: Completion = field(default_factory=Completion)
    slot: int = -1
    read: int = 0
    logits_V: Tensor | None = None
    error: Exception | None = None

    @property
    def unread(self) -> int:
        return len(self.request.prompt) - self.read


class Completer:
    """One model with the contexts that it has read last. `complete` and `run` belong to the event loop; tokens are
    computed in the batcher's thread, a step at a time."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        model.train(False)
        self.tokenizer = tokenizer
        self.longest = longest_context(model)
        self.most_letters = most_letters(tokenizer, self.longest)
        self._reader = Reader(model)
        self._read: dict[int, tuple[int, ...]] = {}
        """What each free slot has read, the longest unused first."""
        self._waiting: deque[_Job] = deque()
        self._jobs: list[_Job] = []
        self._arrived = asyncio.Event()

    async def complete(self, request: GenerationRequest) -> Completion:
        """The answer to one request. Raises `InfrastructureError` where the model has none."""
        chance = torch.Generator().manual_seed(request.seed)
        job = _Job(request, asyncio.get_running_loop().create_future(), chance)
        if request.max_tokens == 0:
            return job.said
        self._waiting.append(job)
        self._arrived.set()
        return await job.future

    async def run(self, batcher: Batcher) -> None:
        """Answer until cancelled."""
        while True:
            while self._waiting or self._jobs:
                try:
                    ended = await batcher.call(self.step)
                except Exception as error:  # nobody's request in particular: all that were under way hear of it
                    ended = self._drop(f"{type(error).__name__}: {error}")
                for job in ended:
                    if job.future.done():
                        continue
                    if job.error is not None:
                        job.future.set_exception(job.error)
                    else:
                        job.future.set_result(job.said)
            self._arrived.clear()
            await self._arrived.wait()

    @torch.inference_mode()
    def step(self) -> list[_Job]:
        """Read some of the prompts, say one token of every answer under way; the jobs that this ended."""
        self._admit()
        self._guarded(self._prefill(), self._read_prompts)
        speaking = [job for job in self._jobs if job.logits_V is not None and job.error is None]
        for job in speaking:
            self._guarded([job], lambda jobs: self._speak(jobs[0]))
        ended = [job for job in self._jobs if job.error is not None or job.future.done() or self._is_over(job)]
        for job in ended:
            self._jobs.remove(job)
            whole = () if job.error else (*job.request.prompt[: job.read], *job.said.tokens[:-1])
            self._read[job.slot] = whole
        self._guarded([job for job in speaking if job not in ended], self._feed)
        return ended

    def _drop(self, why: str) -> list[_Job]:
        """Give up all requests under way."""
        dropped, self._jobs = self._jobs, []
        for job in dropped:
            job.error = InfrastructureError(f"the model fails: {why}")
            self._read[job.slot] = ()
        return dropped

    def _admit(self) -> None:
        """Give waiting requests a slot each, the one that has read most of the prompt if that is free."""
        taken = {job.slot for job in self._jobs}
        free = dict.fromkeys([*self._read, *(slot for slot in range(SLOTS) if slot not in self._read)])
        for slot in taken:
            free.pop(slot, None)
        while self._waiting and free:
            job = self._waiting.popleft()
            if job.future.done():  # whoever asked is gone
                continue
            job.slot = max(free, key=partial(self._worth, job.request.prompt))
            job.read = min(_common(self._read.get(job.slot, ()), job.request.prompt), len(job.request.prompt) - 1)
            del free[job.slot]
            self._read.pop(job.slot, None)
            self._jobs.append(job)

    def _worth(self, prompt: Sequence[int], slot: int) -> tuple[int, bool]:
        """How much of a prompt a slot has read; of equal ones an empty slot is better, then the longest unused."""
        return _common(self._read.get(slot, ()), prompt), slot not in self._read

    def _prefill(self) -> list[_Job]:
        """Whose prompts to read on now: those with the least left first, within the chunk."""
        chosen, room = list[_Job](), CHUNK_TOKENS
        for job in sorted((job for job in self._jobs if job.unread), key=lambda job: job.unread):
            if room <= 0:
                break
            chosen.append(job)
            room -= job.unread
        return chosen

    def _read_prompts(self, jobs: Sequence[_Job]) -> None:
        room, goals = CHUNK_TOKENS, list[int]()
        for job in jobs:
            goals.append(job.read + min(job.unread, max(room, 1)))
            room -= job.unread
        prompts = [job.request.prompt[:goal] for job, goal in zip(jobs, goals, strict=True)]
        logits_BV = self._reader.read([job.slot for job in jobs], prompts)
        for job, goal, logits_V in zip(jobs, goals, logits_BV, strict=True):
            job.read = goal
            job.logits_V = logits_V if not job.unread else None
            if not logits_V.isfinite().all():
                job.error = InfrastructureError(NOT_FINITE.reason)

    def _feed(self, jobs: Sequence[_Job]) -> None:
        logits_BV = self._reader.feed([job.slot for job in jobs], [job.said.tokens[-1:] for job in jobs])
        for job, logits_V in zip(jobs, logits_BV, strict=True):
            job.logits_V = logits_V

    def _guarded(self, jobs: Sequence[_Job], work: Any) -> None:
        """Do something for all of them at once; where that fails, one by one, so that a fault is its own job's."""
        if not jobs:
            return
        try:
            work(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = InfrastructureError(f"the model fails at this request: {type(error).__name__}: {error}")
                return
            for job in jobs:
                self._guarded([job], work)

    def _speak(self, job: _Job) -> None:
        """Say the next token of an answer."""
        logits_V, request, said = job.logits_V, job.request, job.said
        assert logits_V is not None
        logprobs_V, scores_V = _scored(logits_V, request)
        if not logits_V.isfinite().all() or scores_V.isnan().any():
            job.error = InfrastructureError(NOT_FINITE.reason)
            return
        if request.temperature <= 0:
            token = int(logprobs_V.argmax())
        else:
            token = int(torch.multinomial((scores_V / request.temperature).softmax(-1), 1, generator=job.chance))
        said.tokens.append(token)
        said.logprobs.append(float(logprobs_V[token]))
        if request.top:
            best = logprobs_V.topk(min(request.top, len(logprobs_V)))
            told = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            said.top.append({one: value for one, value in told if value > -torch.inf})

    def _is_over(self, job: _Job) -> bool:
        said, request = job.said, job.request
        if not said.tokens:
            return False
        if said.tokens[-1] in request.ends:
            said.finish_reason, said.marked = "stop", True
            return True
        if request.stops and any(stop in str(self.tokenizer.decode(said.tokens)) for stop in request.stops):
            said.finish_reason = "stop"
            return True
        return len(said.tokens) >= request.max_tokens


def _scored(logits_V: Tensor, request: GenerationRequest) -> tuple[Tensor, Tensor]:
    """(log-probabilities, scores) of every token, under the biases and among those allowed."""
    scores_V = logits_V.clone()
    for token, bias in request.bias:
        scores_V[token] += bias
    if request.allowed:
        kept_V = torch.full_like(scores_V, -torch.inf)
        kept_V[list(request.allowed)] = scores_V[list(request.allowed)]
        scores_V = kept_V
    return scores_V.log_softmax(-1), scores_V


def _common(read: Sequence[int], prompt: Sequence[int]) -> int:
    limit = min(len(read), len(prompt))
    if tuple(read[:limit]) == tuple(prompt[:limit]):
        return limit
    return next(place for place, (a, b) in enumerate(zip(read, prompt, strict=False)) if a != b)
