"""A model with its tokenizer: contexts in, one of the options or free text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from flywheel.agents.contexts.language import Language, MarkerLanguage, language_of
from flywheel.agents.contexts.prompts import Window
from flywheel.agents.inference.decoding import (
    Choice,
    Fault,
    Options,
    Sampler,
    Written,
    choose,
    generate,
    options_of,
    sampler,
)
from flywheel.agents.inference.grammars import Allowed, Grammars, Matcher
from flywheel.agents.inference.prefix_cache import PrefixCache
from flywheel.agents.policy import Decoding, Sampling
from flywheel.trajectory import Task, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


UNBOUNDED = 1 << 20
"""Tokens of context, for a model whose config does not say how many it can read."""
MAX_KNOWN = 8192
"""Windows and sets of options that are remembered."""


def longest_context(model: PreTrainedModel) -> int:
    """How many tokens a model can read."""
    return int(getattr(model.config, "max_position_embeddings", None) or UNBOUNDED)


def written(language: Language, tokens: Sequence[int], logprobs: Sequence[float]) -> Written:
    """Generated tokens as an action, or as the word that the subgoal is done."""
    return Written(language.action(tokens), tuple(tokens), tuple(logprobs))


def grammars_of(tokenizer: PreTrainedTokenizerBase, language: Language) -> Grammars:
    """The grammars of a student's tool calls, in its language."""
    return Grammars(cast("PreTrainedTokenizerFast", tokenizer), language.end, language.call_format)


class LanguageModel(Protocol):
    """What a student needs of a model, wherever the model runs."""

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        """A new episode in a slot: what is drawn in it depends on nothing but the task and the attempt."""

    def draw(self, slot: int, sampling: Sampling | None) -> None:
        """How the slot's next answers are drawn; None: as the episode began."""

    def context(self, window: Window, cue: str) -> list[int]:
        """The token ids of the prompt: the window and the marker of the model's turn."""

    def choose(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        options: Sequence[Sequence[str]],
        *,
        may_end: bool = False,
    ) -> list[Choice | Fault | None]:
        """A choice for each row that has options, None for the others. `may_end`: "done" is one more option of every
        row, behind its own."""

    def say(self, slots: Sequence[int], contexts: Sequence[list[int]]) -> list[str | Fault]:
        """A few words for each row."""

    def write(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        allowed: Sequence[Allowed | None],
        *,
        may_end: bool = False,
    ) -> list[Written | Fault]:
        """An action in text for each row: of what is allowed, or any text. `may_end`: "done" may stand in its place."""


class LocalLanguageModel:
    """A transformers model in this process, whose keys and values stay between the turns of an episode."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self._reader = PrefixCache(model)
        self._longest = longest_context(model)
        model.train(False)
        self._tokenizer = tokenizer
        self._language = language_of(tokenizer)
        self._decoding = decoding
        self._samplers: dict[int, Sampler] = {}
        self._asked: dict[int, Sampler] = {}
        """Of slots whose answers are drawn otherwise than their episodes began."""
        self._options: dict[tuple[tuple[str, ...], bool], Options] = {}
        self._windows: dict[int, tuple[Window, int, list[int]]] = {}
        """Windows by identity, with the pieces of them that are tokenised already: they only grow."""
        self._grammars: Grammars | None = None

    @property
    def cached_bytes(self) -> int:
        """What it remembers of its episodes takes so many bytes."""
        return self._reader.nbytes

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        if self._decoding.temperature > 0:
            seed = int(digest("chance", self._decoding.seed, task.task_id, attempt), 16) >> 1
            self._samplers[slot] = sampler(Sampling(self._decoding.temperature, seed=seed))

    def draw(self, slot: int, sampling: Sampling | None) -> None:
        if sampling is None:
            self._asked.pop(slot, None)
        else:
            self._asked[slot] = sampler(sampling)

    def context(self, window: Window, cue: str) -> list[int]:
        language = self._language
        if not isinstance(language, MarkerLanguage):
            return language.prompt(window.pieces, cue)
        known, read, ids = self._windows.get(id(window), (window, 0, []))
        if known is not window:
            read, ids = 0, []
        ids = [*ids, *language.context(window.pieces[read:])]
        if len(self._windows) >= MAX_KNOWN:
            self._windows.clear()
        self._windows[id(window)] = window, len(window.pieces), ids
        return [*ids, *language.ids("", cue)]

    def choose(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        options: Sequence[Sequence[str]],
        *,
        may_end: bool = False,
    ) -> list[Choice | Fault | None]:
        answers: dict[int, Choice | Fault | None] = dict(self._too_long(contexts))
        rows = [row for row, offered in enumerate(options) if (offered or may_end) and row not in answers]
        if not rows:
            return [answers.get(row) for row in range(len(options))]
        row_slots = [slots[row] for row in rows]
        choices = choose(
            self._reader,
            row_slots,
            [contexts[row] for row in rows],
            [self._known(tuple(options[row]), may_end) for row in rows],
            samplers=self._drawing(row_slots),
        )
        answers |= zip(rows, choices, strict=True)
        return [answers.get(row) for row in range(len(options))]

    def say(self, slots: Sequence[int], contexts: Sequence[list[int]]) -> list[str | Fault]:
        free = [None] * len(slots)
        answers = self._generate(slots, contexts, self._decoding.max_subgoal_tokens, free, may_end=False)
        return [answer if isinstance(answer, Fault) else (answer.text or "").strip() for answer in answers]

    def write(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        allowed: Sequence[Allowed | None],
        *,
        may_end: bool = False,
    ) -> list[Written | Fault]:
        return self._generate(slots, contexts, self._decoding.max_action_tokens, allowed, may_end=may_end)

    def _generate(
        self,
        slots: Sequence[int],
        contexts: Sequence[list[int]],
        max_tokens: int,
        allowed: Sequence[Allowed | None],
        *,
        may_end: bool,
    ) -> list[Written | Fault]:
        answers: dict[int, Written | Fault] = dict(self._too_long(contexts))
        rows = [row for row in range(len(slots)) if row not in answers]
        if not rows:
            return [answers[row] for row in range(len(slots))]
        row_slots = [slots[row] for row in rows]
        generations = generate(
            self._reader,
            row_slots,
            [contexts[row] for row in rows],
            end=self._language.end,
            max_tokens=max_tokens,
            never=self._language.never(may_end=may_end),
            only_first=self._language.only_first(may_end=may_end),
            matchers=[self._matcher(allowed[row], may_end=may_end) for row in rows],
            samplers=self._drawing(row_slots),
        )
        for row, generation in zip(rows, generations, strict=True):
            answers[row] = generation if isinstance(generation, Fault) else written(self._language, *generation)
        return [answers[row] for row in range(len(slots))]

    def _matcher(self, allowed: Allowed | None, *, may_end: bool) -> Matcher | None:
        if allowed is None:
            return None
        if self._grammars is None:
            self._grammars = grammars_of(self._tokenizer, self._language)
        return self._grammars.matcher(allowed, self._language.done_text(may_end=may_end))

    def _too_long(self, contexts: Sequence[list[int]]) -> dict[int, Fault]:
        """Rows whose context is longer than what the model can read: row → why it has no answer."""
        return {
            row: Fault(f"a context of {len(context)} tokens is longer than the model's {self._longest}")
            for row, context in enumerate(contexts)
            if len(context) > self._longest
        }

    def _known(self, offered: tuple[str, ...], may_end: bool) -> Options:
        """Options by their tokens; the same ones come back many times in an episode."""
        if (offered, may_end) not in self._options:
            if len(self._options) >= MAX_KNOWN:
                self._options.clear()
            self._options[offered, may_end] = options_of(self._language.options(offered, may_end=may_end))
        return self._options[offered, may_end]

    def _drawing(self, slots: Sequence[int]) -> list[Sampler | None]:
        return [self._asked.get(slot) or self._samplers.get(slot) for slot in slots]
