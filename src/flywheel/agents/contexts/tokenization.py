"""Tokenising contexts piece by piece, the same way for rollouts and for training rows.

Text is data: a marker that it spells is tokenised as the letters that it is, in every tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flywheel.agents.contexts.prompts import END, Piece
from flywheel.errors import PolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one special token. Raises `PolicyError` where the tokenizer has none, as that of an older student."""
    number = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(number, int) or number == tokenizer.unk_token_id:
        raise PolicyError(f"the student's tokenizer does not know {token}: it is from before; distill it anew")
    return number


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text; what spells a special token in it is encoded as ordinary characters."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def max_chars(tokenizer: PreTrainedTokenizerBase, tokens: int) -> int:
    """An upper bound on the characters of a text of so many tokens."""
    return tokens * max(map(len, tokenizer.get_vocab()), default=1)


class PieceTokenizer:
    """Remembers the ids of texts: templates come back thousands of times."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_entries: int = 200_000) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._markers: dict[str, list[int]] = {"": []}
        self._max_entries = max_entries

    def ids(self, text: str, marker: str = "", *, ends: bool = False) -> list[int]:
        """The ids of a text, behind a marker and before the end marker where it has them."""
        if text not in self._known:
            if len(self._known) >= self._max_entries:
                self._known.clear()
            self._known[text] = encode_plain(self._tokenizer, text) if text else []
        if not marker and not ends:
            return self._known[text]
        return [*self._marker(marker), *self._known[text], *self._marker(END if ends else "")]

    def piece(self, piece: Piece) -> list[int]:
        return self.ids(piece.text, piece.marker, ends=piece.ends)

    def context(self, pieces: Iterable[Piece]) -> list[int]:
        return [token for piece in pieces for token in self.piece(piece)]

    def _marker(self, marker: str) -> list[int]:
        if marker not in self._markers:
            self._markers[marker] = [token_id(self._tokenizer, marker)]
        return self._markers[marker]
