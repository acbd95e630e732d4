"""Text of trajectories is data: nothing in it steers a terminal, a page or a table."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that turn the direction of text, and lone surrogates."""
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#+!|~&$-]")


def printable(text: str) -> str:
    """The text with control characters as escapes, as `\\x1b`: a terminal shows them and obeys none."""
    return _CONTROL.sub(lambda match: _escape(match.group()), text)


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def markdown(text: str) -> str:
    """The text as Markdown shows it word for word, on one line."""
    return _MARKDOWN.sub(lambda match: f"\\{match.group()}", " ".join(printable(text).split()))


def html_text(text: str) -> str:
    """The text as HTML shows it word for word."""
    return html.escape(printable(text))
