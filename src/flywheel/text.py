"""Text of trajectories is data: nothing in it steers a terminal, a page or a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that turn the direction of text, and lone surrogates."""
_INSTRUMENT = re.compile(r"(\S+) (.+?) ((?:in|on|with|using) .+)")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~#!]|(?<![^\W_])_+|_+(?![^\W_])|:(?=//|[\w+-]+:)|@(?=\w)|(?i:(?<=www)\.)")


def printable(text: str) -> str:
    """The text with control characters as escapes, as `\\x1b`: a terminal shows them and obeys none."""
    return _CONTROL.sub(lambda match: _escape(match.group()), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def markdown(text: str) -> str:
    """The text as Markdown shows it word for word, on one line."""
    return _MARKDOWN.sub(lambda match: re.sub(r"(.)", r"\\\1", match.group()), " ".join(printable(text).split()))


def printable_line(text: str, limit: int = 500) -> str:
    """The text in one printable line of at most so many characters."""
    return printable(" ".join(text.split()))[:limit]


def plain_console(*, stderr: bool = False) -> Console:
    """A console that takes text for text: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def non_finite_as_text(value: float) -> str:
    """NaN and infinity by name."""
    return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"


def json_value(value: Any, non_finite: Callable[[float], str | None] = lambda value: None) -> Any:
    """A value as JSON holds it, with something else in place of NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return non_finite(value)
    if isinstance(value, dict):
        return {name: json_value(inner, non_finite) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner, non_finite) for inner in value]
    return value


def strict_json(text: str) -> Any:
    """JSON as its standard has it: NaN and Infinity, which Python would read, are refused with `ValueError`."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def unique(names: Sequence[str]) -> list[str]:
    """The names with a number behind those that came before: a, b, a_2."""
    taken: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.append(candidate)
    return taken


def subgoal_name(action: str) -> str:
    """How the subgoal is called that an action achieves: as the action, the instrument before the object.

    `cook red onion in oven` → `cook in oven red onion`. Words are chosen one after the other, and the instrument leaves
    few objects to choose from (docs/experiments/0013).
    """
    named = _INSTRUMENT.fullmatch(action)
    return " ".join((named[1], named[3], named[2])) if named else action


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_strings(part, change) for part in value]
    if isinstance(value, dict):
        return {change(name): with_strings(part, change) for name, part in value.items()}
    return value


def strings_in(text: str) -> Iterator[str]:
    """The strings that stand as values in a JSON text, in no order; none where it is no JSON."""
    try:
        waiting: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value
