"""What was said in a dialogue, as a running hash: dialogues of one name are equal to the letter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

TurnTexts = Sequence[str]
"""A turn: its role, and what was said or called."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The turns so far. A request tells all of them, so they are hashed once, and what follows is added."""

    _state: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def then(self, turns: Iterable[TurnTexts]) -> Transcript:
        """With more turns behind."""
        state = self._state.copy()
        for turn in turns:
            state.update(b"%d:" % len(turn))
            for text in turn:
                encoded = text.encode(errors="surrogatepass")
                state.update(b"%d:" % len(encoded) + encoded)
        return Transcript(state)

    @property
    def name(self) -> str:
        return self._state.hexdigest()
