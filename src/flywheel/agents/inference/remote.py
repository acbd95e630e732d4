"""A student's model behind a completion server, such as vLLM: the same contexts and the same choices, made over HTTP.

The server gets token ids. Options are chosen along their tree as `decode.choose` does it, with `allowed_token_ids`: one
request a branching point, each of which finds the prefix of the one before in the server's cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from flywheel.agents.contexts.language import language_of
from flywheel.agents.contexts.prompts import Window
from flywheel.agents.inference.decoding import Branch, Choice, Fault, Written, options_of
from flywheel.agents.inference.endpoint import Server, explained
from flywheel.agents.inference.grammars import Allowed
from flywheel.agents.inference.language_model import written
from flywheel.agents.policy import Decoding, Sampling
from flywheel.errors import InfrastructureError, PrerequisiteError, RefusedError
from flywheel.trajectory import Task, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARALLEL = 64
"""Requests under way at once."""
NEVER = -100.0
"""The logit bias of a forbidden token."""


class RemoteLanguageModel:
    """Implements `LanguageModel` with a server's `/v1/completions`."""

    def __init__(
        self, server: Server, tokenizer: PreTrainedTokenizerBase, decoding: Decoding, *, retries: int = 30
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise PrerequisiteError(
                f"the {server.role} needs openai: pip install 'trajectory-flywheel[chat]'"
            ) from error
        self._errors: Any = openai.OpenAIError
        self._client: Any = openai.OpenAI(
            base_url=server.base_url,
            api_key=os.environ.get(server.key, "none"),
            timeout=server.timeout,
            max_retries=retries,
        )
        self._server, self._decoding = server, decoding
        self._tokenizer, self._language = tokenizer, language_of(tokenizer)
        self._end_text = str(tokenizer.convert_ids_to_tokens(self._language.end))
        self._threads = ThreadPoolExecutor(PARALLEL, thread_name_prefix="completions")
        self._begun: dict[int, Sampling] = {}
        self._asked: dict[int, Sampling] = {}

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        seed = int(digest("chance", self._decoding.seed, task.task_id, attempt, size=3), 16)
        self._begun[slot] = Sampling(self._decoding.temperature, seed=seed)

    def draw(self, slot: int, sampling: Sampling | None) -> None:
        if sampling is None:
            self._asked.pop(slot, None)
        else:
            self._asked[slot] = sampling

    def context(self, window: Window, cue: str) -> list[int]:
        return self._language.prompt(window.pieces, cue)

    def choose(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        options: Sequence[Sequence[str]],
        *,
        may_end: bool = False,
    ) -> list[Choice | Fault | None]:
        return list(self._threads.map(partial(self._choose, may_end=may_end), slots, contexts, options))

    def say(self, slots: Sequence[int], contexts: Sequence[list[int]]) -> list[str | Fault]:
        return list(self._threads.map(self._say, slots, contexts))

    def write(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        allowed: Sequence[Allowed | None],
        *,
        may_end: bool = False,
    ) -> list[Written | Fault]:
        """Calls of tools are not constrained on the server: the environment answers those that do not fit."""
        return list(self._threads.map(partial(self._write, may_end=may_end), slots, contexts))

    def _write(self, slot: int, context: list[int], *, may_end: bool) -> Written | Fault:
        try:
            reply = self._complete(
                slot,
                context,
                max_tokens=self._decoding.max_action_tokens,
                logprobs=1,
                logit_bias=self._biases(may_end=may_end),
                extra_body={"stop_token_ids": [self._language.end]},
            )
        except RefusedError as refused:
            return Fault(str(refused))
        choice = reply.choices[0]
        ids = getattr(choice, "token_ids", None)
        if ids is None:
            text = str(choice.text).removesuffix(self._end_text)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        logprobs = choice.logprobs.token_logprobs if choice.logprobs and choice.logprobs.token_logprobs else []
        return written(self._language, [token for token in ids if token != self._language.end], logprobs)

    def _biases(self, *, may_end: bool) -> dict[str, float]:
        return {str(token): NEVER for token in self._language.never(may_end=may_end)}

    def _choose(self, slot: int, context: list[int], offered: Sequence[str], *, may_end: bool) -> Choice | Fault | None:
        if not offered and not may_end:
            return None
        options = options_of(self._language.options(offered, may_end=may_end))
        branch = Branch(options)
        logprobs = [0.0] * len(branch.said)
        while branch.is_open:
            try:
                token, logprob = self._token(slot, [*context, *branch.said], branch.ways())
            except RefusedError as refused:
                return Fault(str(refused))
            logprobs += [logprob, *[0.0] * (len(branch.take(token)) - 1)]
        return Choice(options.place[tuple(branch.said)], tuple(branch.said), tuple(logprobs))

    def _token(self, slot: int, context: list[int], allowed: list[int]) -> tuple[int, float]:
        """The next token among those allowed, and its log-probability among them."""
        reply = self._complete(slot, context, max_tokens=1, logprobs=1, extra_body={"allowed_token_ids": allowed})
        spelt = {self._tokenizer.decode([token]): token for token in allowed}
        ids = getattr(reply.choices[0], "token_ids", None)
        token = ids[0] if ids else spelt.get(reply.choices[0].text)
        if token not in allowed:
            raise InfrastructureError(
                f"the {self._server.role} at {self._server.base_url} chose none of the allowed tokens; "
                "does it know allowed_token_ids?"
            )
        logprobs = reply.choices[0].logprobs
        return token, float(logprobs.token_logprobs[0]) if logprobs and logprobs.token_logprobs else 0.0

    def _say(self, slot: int, context: list[int]) -> str | Fault:
        try:
            reply = self._complete(
                slot,
                context,
                max_tokens=self._decoding.max_subgoal_tokens,
                logit_bias=self._biases(may_end=False),
                extra_body={"stop_token_ids": [self._language.end]},
            )
        except RefusedError as refused:
            return Fault(str(refused))
        ids = getattr(reply.choices[0], "token_ids", None)
        if ids is None:
            return str(reply.choices[0].text).removesuffix(self._end_text).strip()
        return str(self._tokenizer.decode([token for token in ids if token != self._language.end])).strip()

    def _complete(self, slot: int, context: list[int], *, extra_body: dict[str, Any], **options: Any) -> Any:
        sampling = self._asked.get(slot) or self._begun.get(slot) or Sampling(self._decoding.temperature)
        try:
            return self._client.completions.create(
                model=self._server.model,
                prompt=context,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                extra_body={"return_token_ids": True, "skip_special_tokens": False, **extra_body},
                **options,
            )
        except self._errors as error:
            raise explained(self._server, error) from error
