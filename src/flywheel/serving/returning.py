"""Clients that were just answered and are about to ask again: whom a batch had better wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

NEWS = 0.1
"""How much the newest pause counts in the usual one."""
AT_ONCE = 0.1
"""Pauses up to this share of a batch's time count as none."""


class Returning:
    """When dialogues were answered, and how long their clients usually take to ask again.

    A served agent steps its environment and comes back within milliseconds. A batch that starts without it makes it
    wait for a whole batch, and leaves both half empty. Where clients come back at once, a batch waits for all of them;
    where they take a good part of a batch's time, for half, so that half of them act while the others are decided, as
    in double-buffered sampling (Petrenko et al., Sample Factory, arXiv 2006.11751); where they take longer, for nobody.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered: dict[str, float] = {}
        """Dialogue → when it was answered, the oldest first."""
        self._pause = 0.0
        """Seconds from an answer to the next question."""

    def answered(self, dialogue: str) -> None:
        self._answered.pop(dialogue, None)
        self._answered[dialogue] = self._clock()

    def asked(self, dialogue: str) -> None:
        """A dialogue goes on."""
        if (since := self._answered.pop(dialogue, None)) is not None:
            self._pause += NEWS * (self._clock() - since - self._pause)

    def quorum(self, waiting: int, batch_seconds: float) -> int:
        """How many should wait before a batch starts, where `waiting` do and a batch takes so long."""
        gone = self._clock() - 2 * self._pause
        while self._answered and next(iter(self._answered.values())) < gone:
            del self._answered[next(iter(self._answered))]
        if self._pause >= batch_seconds:
            return waiting
        everybody = waiting + len(self._answered)
        return everybody if self._pause < AT_ONCE * batch_seconds else -(-everybody // 2)
