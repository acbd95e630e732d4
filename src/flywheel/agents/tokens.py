"""Tokenising contexts piece by piece, the same way for rollouts and for training rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flywheel.agents.prompts import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one special token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


class PieceTokenizer:
    """Remembers the ids of pieces: templates come back thousands of times."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_entries: int = 200_000) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._max_entries = max_entries

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) >= self._max_entries:
                self._known.clear()
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def context(self, pieces: Iterable[Piece]) -> list[int]:
        return [token for piece in pieces for token in self.ids(piece.text)]
