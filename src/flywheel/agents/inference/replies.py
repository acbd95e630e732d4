"""Parsing replies of OpenAI-compatible servers: content in parts, reasoning under several names, odd arguments.

The OpenAI client builds its objects from whatever came, so nothing here has the type that it is said to have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flywheel.messages import without_thinking

_TEXTS, _THOUGHTS = ("text", "output_text"), ("thinking", "reasoning", "summary_text", "reasoning_text")


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of a model: its text, its reasoning, and the arguments of its first tool call, if it made one."""

    text: str
    thought: str = ""
    arguments: Mapping[str, Any] | None = None


def reply_of(message: Any) -> Reply:
    """What a message says."""
    texts, thoughts = _parts(getattr(message, "content", None))
    for name in ("reasoning", "reasoning_content", "thinking"):
        reasoning = getattr(message, name, None)
        if reasoning and not thoughts:
            thoughts = [text for kind in _parts(reasoning) for text in kind]
    text = "\n".join(texts)
    text, tagged = without_thinking(text)
    thoughts = [*thoughts, tagged] if tagged else thoughts
    refusal = getattr(message, "refusal", None)
    if not text and isinstance(refusal, str):
        text = refusal
    return Reply(text, "\n".join(filter(None, thoughts)), _arguments(message))


def error_of(reply: Any) -> tuple[int, str] | None:
    """(code or 0, message) of an error that came with status 200, as proxies send it; None where there is none."""
    error = getattr(reply, "error", None)
    if not error:
        return None
    if not isinstance(error, dict):
        return 0, str(error)
    return count_of(error.get("code")), str(error.get("message") or error)


def count_of(value: Any) -> int:
    """A whole number above zero, such as a count of tokens; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def known_count(value: Any) -> int | None:
    """A count of tokens, or None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _parts(content: Any) -> tuple[list[str], list[str]]:
    """(texts, thoughts) of content, which is text or a list of parts."""
    if isinstance(content, str):
        return [content], []
    texts, thoughts = list[str](), list[str]()
    for part in content if isinstance(content, list) else ():
        kind, inner = (part.get("type"), part) if isinstance(part, dict) else ("text", {"text": part})
        if kind in _THOUGHTS:
            thoughts += _parts(inner.get(kind, inner.get("text")))[0]
        elif kind in _TEXTS and isinstance(inner.get("text"), str):
            texts.append(inner["text"])
    return texts, thoughts


def _arguments(message: Any) -> Mapping[str, Any] | None:
    """Arguments of the first call, as JSON text or as an object; empty where they are neither."""
    calls = getattr(message, "tool_calls", None)
    call = calls[0] if isinstance(calls, list) and calls else None
    function = getattr(call, "function", None) if call is not None else getattr(message, "function_call", None)
    if isinstance(call, dict):
        function = call.get("function")
    if function is None:
        return None if call is None else {}
    arguments = function.get("arguments") if isinstance(function, dict) else getattr(function, "arguments", None)
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        return {}
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
