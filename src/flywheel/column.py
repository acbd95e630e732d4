"""What stands beside a field of the data contract: the column that stores it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the lake, beside the field that it stores: what it holds, its Arrow type where Python's does not say
    it, and whether empty text is stored as NULL."""

    holds: str
    type: str = ""
    empty_is_null: bool = False
