"""Raw completions of one model, many requests at once: what a planner or an executor says after given tokens.

Requests join and leave between two tokens (continuous batching, as in Orca, OSDI 2022), and a long prompt is read in
chunks between the tokens of the others (chunked prefill, as in Sarathi, arXiv 2308.16369): nobody waits for a whole
answer of somebody else. One request's fault is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.agents.contexts.tokenization import max_chars
from flywheel.agents.inference.batching import Batcher
from flywheel.agents.inference.decoding import NOT_FINITE, Sampler, sampler
from flywheel.agents.inference.language_model import longest_context
from flywheel.agents.inference.prefix_cache import PrefixCache, common_prefix
from flywheel.agents.policy import Sampling
from flywheel.errors import InfrastructureError

SLOTS = 64
"""Contexts whose keys and values are kept."""
CHUNK_TOKENS = 512
"""Tokens of prompts that are read between two tokens of the running requests."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What one request asks for. `top_logprobs`: how many of the likeliest tokens to report at each token."""

    prompt: tuple[int, ...]
    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    allowed: tuple[int, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    top_logprobs: int = 0


@dataclass(slots=True)
class Completion:
    """The tokens of an answer, each with its log-probability among those allowed. `top_logprobs`: token → its
    log-probability, of the likeliest at each place, where they were asked for."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: str = "length"
    ends_with_stop_token: bool = False

    @property
    def visible_tokens(self) -> list[int]:
        """The tokens of the answer's text."""
        return self.tokens[:-1] if self.ends_with_stop_token else self.tokens


@dataclass(slots=True, eq=False)
class _Job:
    """A running request: `read` tokens of its prompt are in the cache, and `chunk_end` will be after this step."""

    request: GenerationRequest
    future: asyncio.Future[Completion]
    sampler: Sampler
    completion: Completion = field(default_factory=Completion)
    slot: int = -1
    read: int = 0
    chunk_end: int = 0
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
        self.max_context_tokens = longest_context(model)
        self.max_prompt_chars = max_chars(tokenizer, self.max_context_tokens)
        self._reader = PrefixCache(model)
        self._cached: dict[int, tuple[int, ...]] = {}
        """Tokens whose keys and values each free slot holds, the longest unused first."""
        self._waiting: deque[_Job] = deque()
        self._jobs: list[_Job] = []
        self._arrived = asyncio.Event()

    async def complete(self, request: GenerationRequest) -> Completion:
        """The answer to one request. Raises `InfrastructureError` where the model has none."""
        drawing = sampler(Sampling(request.temperature, request.top_p, request.seed))
        job = _Job(request, asyncio.get_running_loop().create_future(), drawing)
        if request.max_tokens == 0:
            return job.completion
        self._waiting.append(job)
        self._arrived.set()
        return await job.future

    async def run(self, batcher: Batcher) -> None:
        """Answer until cancelled."""
        while True:
            while self._waiting or self._jobs:
                try:
                    ended = await batcher.call(self.step)
                except Exception as error:  # no one request's fault: all running ones fail
                    ended = self._fail_all(f"{type(error).__name__}: {error}")
                for job in ended:
                    if job.future.done():
                        continue
                    if job.error is not None:
                        job.future.set_exception(job.error)
                    else:
                        job.future.set_result(job.completion)
            self._arrived.clear()
            await self._arrived.wait()

    @torch.inference_mode()
    def step(self) -> list[_Job]:
        """Prefill a chunk of the prompts and decode one token of every running request; the jobs that ended."""
        self._admit()
        self._isolate_faults(self._next_chunk(), self._prefill)
        decoding = [job for job in self._jobs if job.logits_V is not None and job.error is None]
        for job in decoding:
            self._isolate_faults([job], lambda jobs: self._sample(jobs[0]))
        ended = [job for job in self._jobs if job.error is not None or job.future.done() or self._is_over(job)]
        for job in ended:
            self._jobs.remove(job)
            cached = () if job.error else (*job.request.prompt[: job.read], *job.completion.tokens[:-1])
            self._cached[job.slot] = cached
        self._isolate_faults([job for job in decoding if job not in ended], self._feed)
        return ended

    def _fail_all(self, reason: str) -> list[_Job]:
        """Give up all running requests."""
        failed, self._jobs = self._jobs, []
        for job in failed:
            job.error = InfrastructureError(f"the model fails: {reason}")
            self._cached[job.slot] = ()
        return failed

    def _admit(self) -> None:
        """Give waiting requests a slot each: of the free ones that with the longest prefix of the prompt."""
        taken = {job.slot for job in self._jobs}
        free = dict.fromkeys([*self._cached, *(slot for slot in range(SLOTS) if slot not in self._cached)])
        for slot in taken:
            free.pop(slot, None)
        while self._waiting and free:
            job = self._waiting.popleft()
            if job.future.done():  # the client is gone
                continue
            job.slot = max(free, key=partial(self._slot_score, job.request.prompt))
            prompt = job.request.prompt
            job.read = common_prefix(self._cached.get(job.slot, ()), prompt[:-1])
            del free[job.slot]
            self._cached.pop(job.slot, None)
            self._jobs.append(job)

    def _slot_score(self, prompt: Sequence[int], slot: int) -> tuple[int, bool]:
        """How much of a prompt a slot holds; of equal ones an empty slot is better, then the longest unused."""
        return common_prefix(self._cached.get(slot, ()), prompt), slot not in self._cached

    def _next_chunk(self) -> list[_Job]:
        """Whose prompts are read on now, up to their `chunk_end`: those with the least left first."""
        chosen, budget = list[_Job](), CHUNK_TOKENS
        for job in sorted((job for job in self._jobs if job.unread), key=lambda job: job.unread):
            if budget <= 0:
                break
            chosen.append(job)
            job.chunk_end = job.read + min(job.unread, budget)
            budget -= job.unread
        return chosen

    def _prefill(self, jobs: Sequence[_Job]) -> None:
        prompts = [job.request.prompt[: job.chunk_end] for job in jobs]
        logits_BV = self._reader.read([job.slot for job in jobs], prompts)
        for job, logits_V in zip(jobs, logits_BV, strict=True):
            job.read = job.chunk_end
            job.logits_V = logits_V if not job.unread else None
            if not logits_V.isfinite().all():
                job.error = InfrastructureError(NOT_FINITE.reason)

    def _feed(self, jobs: Sequence[_Job]) -> None:
        logits_BV = self._reader.feed([job.slot for job in jobs], [job.completion.tokens[-1:] for job in jobs])
        for job, logits_V in zip(jobs, logits_BV, strict=True):
            job.logits_V = logits_V

    def _isolate_faults(self, jobs: Sequence[_Job], run: Callable[[Sequence[_Job]], None]) -> None:
        """Run something for all jobs at once; where that fails, one by one, so that only the faulty job fails."""
        if not jobs:
            return
        try:
            run(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = InfrastructureError(f"the model fails at this request: {type(error).__name__}: {error}")
                return
            for job in jobs:
                self._isolate_faults([job], run)

    def _sample(self, job: _Job) -> None:
        """Draw the next token of an answer."""
        logits_V, request, completion = job.logits_V, job.request, job.completion
        assert logits_V is not None
        if not logits_V.isfinite().all():
            job.error = InfrastructureError(NOT_FINITE.reason)
            return
        logprobs_V, scores_V = _scored(logits_V, request)
        token = job.sampler.pick(scores_V.numpy())
        completion.tokens.append(token)
        completion.logprobs.append(float(logprobs_V[token]))
        if request.top_logprobs:
            best = logprobs_V.topk(min(request.top_logprobs, len(logprobs_V)))
            likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            completion.top_logprobs.append({token: value for token, value in likeliest if value > -torch.inf})

    def _is_over(self, job: _Job) -> bool:
        completion, request = job.completion, job.request
        if not completion.tokens:
            return False
        if completion.tokens[-1] in request.stop_token_ids:
            completion.finish_reason, completion.ends_with_stop_token = "stop", True
            return True
        if request.stop_strings:
            text = str(self.tokenizer.decode(completion.tokens))
            if any(stop in text for stop in request.stop_strings):
                completion.finish_reason = "stop"
                return True
        return len(completion.tokens) >= request.max_tokens


def _scored(logits_V: Tensor, request: GenerationRequest) -> tuple[Tensor, Tensor]:
    """(log-probabilities, scores) of every token, under the biases and among those allowed."""
    scores_V = logits_V.clone()
    for token, bias in request.bias:
        scores_V[token] += bias
    if request.allowed:
        allowed_V = torch.full_like(scores_V, -torch.inf)
        allowed_V[list(request.allowed)] = scores_V[list(request.allowed)]
        scores_V = allowed_V
    return scores_V.log_softmax(-1), scores_V
