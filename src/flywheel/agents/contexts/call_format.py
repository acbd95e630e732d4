"""How tool calls are spelt, as literals around a name and the JSON of its arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from flywheel.messages import ToolCall

_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class CallFormat:
    """`before` name `between` arguments `after`; `separator` in place of `after` and `before` between two calls, or
    None where an answer holds one call."""

    before: str
    between: str
    after: str
    separator: str | None

    def calls(self, text: str) -> tuple[ToolCall, ...]:
        """The calls that a text makes, without ids; none where it is no such text, whole and unbroken."""
        rest, calls = text.strip(), list[ToolCall]()
        before = self.before.lstrip()
        if not rest.startswith(before):
            return ()
        rest = rest[len(before) :]
        while True:
            name, separated, rest = rest.partition(self.between)
            try:
                arguments, end = _DECODER.raw_decode(rest)
            except (ValueError, RecursionError):
                return ()
            if not separated or not isinstance(arguments, dict):
                return ()
            calls.append(ToolCall("", name, rest[:end]))
            rest = rest[end:]
            if rest == self.after.rstrip():
                return tuple(calls)
            if self.separator is None or not rest.startswith(self.separator):
                return ()
            rest = rest[len(self.separator) :]

    def begins(self, names: Iterable[str]) -> list[str]:
        """How calls of some tools begin, and hence no text."""
        return [self.before] if self.before else [f"{name}{self.between}{{" for name in names]


MARKED_CALLS = CallFormat("", " ", "", "\n")
"""`name arguments`, a line a call: as actions are written (`flywheel.messages.action_of`)."""
