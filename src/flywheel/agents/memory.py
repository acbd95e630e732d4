"""Bounded episodic memory: documents read, ways between places, and what was done before the current window.

Memory is a pure fold over what the agent saw and did, so a training row rebuilt from a stored trajectory holds
the same bytes as the live rollout. Bounds keep the cost of a decision at step 500 what it was at step 20.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_NOTES = 2
MAX_ROUTES = 16
MAX_PAST = 10


@dataclass(frozen=True, slots=True)
class Memory:
    """What an agent keeps beyond its window (UI-TARS-2, arXiv 2509.02544, calls it episodic memory)."""

    notes: tuple[str, ...] = ()
    routes: tuple[tuple[str, str, str], ...] = ()
    """(place, action, place it led to), oldest first."""
    past: tuple[str, ...] = ()
    """What was done, oldest first: subgoals with their outcome, or plain actions for a flat agent."""

    def read(self, note: str) -> Memory:
        """Keep a document; reading it again moves it to the end."""
        if not note:
            return self
        return replace(self, notes=(*(kept for kept in self.notes if kept != note), note)[-MAX_NOTES:])

    def moved(self, place: str, action: str, new_place: str) -> Memory:
        """Learn where an action leads, if it led anywhere."""
        if not place or not new_place or place == new_place:
            return self
        known = (route for route in self.routes if route[:2] != (place, action))
        return replace(self, routes=(*known, (place, action, new_place))[-MAX_ROUTES:])

    def did(self, entry: str) -> Memory:
        return replace(self, past=(*self.past, entry)[-MAX_PAST:])
