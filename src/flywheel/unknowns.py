"""Numbers that nobody may have told: unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def known_sum(values: Iterable[Number | None]) -> Number | None:
    """The sum, or None where one of the values is unknown; None of no values."""
    total: Number | None = None
    for value in values:
        if value is None:
            return None
        total = value if total is None else total + value
    return total


def spent(amount: float | None, budget: float) -> bool:
    """Is a budget used up? What is unknown is not free: it counts as all of it. 0 is no budget."""
    return budget > 0 and (amount is None or amount >= budget)
