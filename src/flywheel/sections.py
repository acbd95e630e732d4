"""A text environment's observation as one text: sections that begin with `[name]` at the start of a line.

Lines of the text itself that begin with `[` or a backslash get a backslash, so that the sections can be read back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

FEEDBACK, DOCUMENT, VIEW, AUDIT, ACTIONS = "feedback", "document", "view", "audit", "actions"
_SECTION = re.compile(r"^\[([a-z]+)\] ?", re.MULTILINE)
_SPECIAL = re.compile(r"^(?=[\[\\])", re.MULTILINE)
_ESCAPED = re.compile(r"^\\", re.MULTILINE)


def render_sections(texts: Mapping[str, str], actions: Sequence[str] | None) -> str:
    """Sections in the order of `texts`, those without text left out but for the view, and the valid actions last."""
    lines = [f"[{name}] {_SPECIAL.sub(_backslash, text)}" for name, text in texts.items() if text or name == VIEW]
    if actions is not None:
        lines.append(f"[{ACTIONS}]")
        lines += [f"- {one_line(action)}" for action in actions]
    return "\n".join(lines)


def parse_sections(text: str) -> tuple[dict[str, str], tuple[str, ...] | None]:
    """(texts by section, valid actions or None): the inverse of `render_sections`. Other text is a view."""
    marks = list(_SECTION.finditer(text))
    if not marks or marks[0].start() != 0:
        return {VIEW: text}, None
    ends = [*(mark.start() - 1 for mark in marks[1:]), len(text)]
    sections = {mark.group(1): text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)}
    actions = None
    if ACTIONS in sections:
        lines = sections.pop(ACTIONS).split("\n")
        actions = tuple(many_lines(line[2:]) for line in lines if line.startswith("- "))
    return {name: _ESCAPED.sub("", section) for name, section in sections.items()}, actions


def one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def many_lines(text: str) -> str:
    if "\\" not in text:
        return text
    letters = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
    return re.sub(r"\\[\\nr]", lambda match: letters[match.group()], text)


def _backslash(_: re.Match[str]) -> str:
    return "\\"
