"""Text of trajectories is data: nothing in it steers a terminal, a page or a table."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that turn the direction of text, and lone surrogates."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~#!]|(?<![^\W_])_+|_+(?![^\W_])|:(?=//|[\w+-]+:)|@(?=\w)|(?i:(?<=www)\.)")


def printable(text: str) -> str:
    """The text with control characters as escapes, as `\\x1b`: a terminal shows them and obeys none."""
    return _CONTROL.sub(lambda match: _escape(match.group()), text)


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def markdown(text: str) -> str:
    """The text as Markdown shows it word for word, on one line."""
    return _MARKDOWN.sub(lambda match: re.sub(r"(.)", r"\\\1", match.group()), " ".join(printable(text).split()))


def html_text(text: str) -> str:
    """The text as HTML shows it word for word."""
    return html.escape(printable(text))


def plain_console(*, stderr: bool = False) -> Console:
    """A console that takes text for text: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def json_value(value: Any, *, words: bool, lost: list[int]) -> Any:
    """A value as JSON holds it. NaN and infinity become null, or words; each is counted in `lost`."""
    if isinstance(value, float) and not math.isfinite(value):
        lost[0] += 1
        return ("NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity") if words else None
    if isinstance(value, dict):
        return {name: json_value(inner, words=words, lost=lost) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner, words=words, lost=lost) for inner in value]
    return value


def unique(names: Sequence[str]) -> list[str]:
    """The names with a number behind those that came before: a, b, a_2."""
    found: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in found:
            number += 1
            candidate = f"{name}_{number}"
        found.append(candidate)
    return found
