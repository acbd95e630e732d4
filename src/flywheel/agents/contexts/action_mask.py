"""Action mask against repetition: an action tried often enough in a state is not offered there again.

For deterministic environments: from an equal state the same action leads to the same place, so that one that changed
nothing would change nothing again, and a loop through equal states would go on for ever. The mask is the same for every
student, and reports say so.
"""

from __future__ import annotations

from collections import Counter

from flywheel.environments.protocol import Observation


class ActionMask:
    """Counts (state, action) pairs of one episode. `max_repeats` 0: everything is offered."""

    def __init__(self, max_repeats: int) -> None:
        self._max_repeats = max_repeats
        self._tried: Counter[tuple[str, str]] = Counter()
        self._idle: set[tuple[str, str]] = set()
        self._last: tuple[str, str] | None = None

    def offer(self, observation: Observation) -> list[str]:
        """The valid actions worth offering: all of them where the environment does not say which states are equal."""
        key = observation.state_key
        if not key or not self._max_repeats:
            return list(observation.valid_actions or ())
        if self._last is not None and self._last[0] == key and not observation.document:
            self._idle.add(self._last)
        return [
            action
            for action in observation.valid_actions or ()
            if self._tried[key, action] < self._max_repeats and (key, action) not in self._idle
        ]

    def took(self, observation: Observation, action: str) -> None:
        self._last = (observation.state_key, action)
        self._tried[self._last] += 1
