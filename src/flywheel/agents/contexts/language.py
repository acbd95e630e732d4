"""How a model reads a context and answers: by markers of Flywheel's own, or by the chat template it was tuned on.

Students from scratch learn the markers. So does a base without a chat template; every other base keeps its own
language, in which its tool calls, turns and ends are what it has always seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from flywheel.agents.contexts.call_format import MARKED_CALLS, CallFormat
from flywheel.agents.contexts.chat_template import ChatTemplate
from flywheel.agents.contexts.prompts import DONE, END, PAD, SPECIAL_TOKENS, TASK, Piece
from flywheel.agents.contexts.tokenization import PieceTokenizer, token_id
from flywheel.errors import PolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Weigh = Callable[[Piece], float]
"""How much a target counts."""
Row = tuple[list[int], list[float]]
"""Token ids of a context, and the weight of each as a target: 0 for all that are not the agent's words."""


class Language(Protocol):
    """Contexts as token ids, and tokens as answers."""

    end: int
    """The token that ends an answer."""

    def rows(self, pieces: Sequence[Piece], weigh: Weigh) -> list[Row]:
        """A window as rows to learn from: one, unless the language says earlier turns otherwise later on."""

    def prompt(self, pieces: Sequence[Piece], cue: str) -> list[int]:
        """What is read before an answer; `cue` is the marker of the answer's kind."""

    def options(self, offered: Sequence[str], *, may_end: bool) -> list[list[int]]:
        """The tokens of each option, and of "done" behind them."""

    def never(self, *, may_end: bool) -> list[int]:
        """Tokens that an answer in free text must not hold: they would forge the structure of its context."""

    def only_first(self, *, may_end: bool) -> int | None:
        """The token that says "done" where it stands first, and ends the answer."""

    def done_text(self, *, may_end: bool) -> str:
        """The text that says "done", where it is a text."""

    def call_format(self) -> CallFormat:
        """How a tool call is spelt."""

    def action(self, tokens: Sequence[int]) -> str | None:
        """What the generated tokens do; None: "done"."""


class MarkerLanguage(PieceTokenizer):
    """Markers between texts, tokenised piece by piece, so that a prefix of a context is one of its tokens, too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.end, self._done = token_id(tokenizer, END), token_id(tokenizer, DONE)
        self._structure = [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS if marker != END]

    def rows(self, pieces: Sequence[Piece], weigh: Weigh) -> list[Row]:
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            piece_ids = self.piece(piece)
            ids += piece_ids
            weights += [weigh(piece) if piece.target else 0.0] * len(piece_ids)
        return [(ids, weights)]

    def prompt(self, pieces: Sequence[Piece], cue: str) -> list[int]:
        return [*self.context(pieces), *self.ids("", cue)]

    def options(self, offered: Sequence[str], *, may_end: bool) -> list[list[int]]:
        ids = [self.ids(option, ends=True) for option in offered]
        return [*ids, self.ids("", DONE, ends=True)] if may_end else ids

    def never(self, *, may_end: bool) -> list[int]:
        return [marker for marker in self._structure if not may_end or marker != self._done]

    def only_first(self, *, may_end: bool) -> int | None:
        return self._done if may_end else None

    def done_text(self, *, may_end: bool) -> str:
        return ""

    def call_format(self) -> CallFormat:
        return MARKED_CALLS

    def action(self, tokens: Sequence[int]) -> str | None:
        return None if tokens and tokens[0] == self._done else str(self._tokenizer.decode(list(tokens)))


def language_of(tokenizer: PreTrainedTokenizerBase) -> Language:
    """The language of a student's tokenizer."""
    return MarkerLanguage(tokenizer) if knows_markers(tokenizer) else ChatTemplate(tokenizer)


def knows_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.convert_tokens_to_ids(TASK) not in (None, tokenizer.unk_token_id)


def markers_of(language: Language) -> MarkerLanguage:
    """Raises `PolicyError` where a student speaks by a chat template: what steers single tokens reads markers."""
    if not isinstance(language, MarkerLanguage):
        raise PolicyError(
            "this student speaks by its base's chat template, and only cloning teaches it; leave out "
            'train.finetune, or train from scratch (student.base = "")'
        )
    return language


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up."""
    if knows_markers(tokenizer):
        return token_id(tokenizer, PAD)
    known = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(known or 0)
