"""Bounded episodic memory: documents read, routes between locations, recent actions, and a summary of the rest.

Memory is a pure fold over what the agent saw and did, so a training row rebuilt from a stored trajectory holds
the same bytes as the live rollout. Bounds keep the cost of a decision at step 500 what it was at step 20.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_DOCUMENTS = 2
MAX_ROUTES = 16
MAX_PAST = 10
FAILED = (" timeout", " stuck")
"""How entries of subgoals end that were given up."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What an agent keeps beyond its window (UI-TARS-2, arXiv 2509.02544, calls it episodic memory)."""

    documents: tuple[str, ...] = ()
    routes: tuple[tuple[str, str, str], ...] = ()
    """(location, action, location it led to), oldest first."""
    past: tuple[str, ...] = ()
    """What was done, oldest first: subgoals with their outcome, or plain actions for a flat agent."""
    earlier: tuple[int, int] = (0, 0)
    """How much was done and how much failed before that."""

    def read(self, document: str) -> Memory:
        """Keep a document; reading it again moves it to the end."""
        if not document:
            return self
        return replace(
            self, documents=(*(kept for kept in self.documents if kept != document), document)[-MAX_DOCUMENTS:]
        )

    def moved(self, location: str, action: str, new_location: str) -> Memory:
        """Learn where an action leads, if it led anywhere."""
        if not location or not new_location or location == new_location:
            return self
        known = (route for route in self.routes if route[:2] != (location, action))
        return replace(self, routes=(*known, (location, action, new_location))[-MAX_ROUTES:])

    def did(self, entry: str) -> Memory:
        past = (*self.past, entry)
        done, failed = self.earlier
        for forgotten in past[:-MAX_PAST]:
            lost = forgotten.endswith(FAILED)
            done, failed = done + (not lost), failed + lost
        return replace(self, past=past[-MAX_PAST:], earlier=(done, failed))
