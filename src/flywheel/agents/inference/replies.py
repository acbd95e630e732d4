"""Parsing replies of OpenAI-compatible servers: content in parts, reasoning under several names, odd arguments.

The OpenAI client builds its objects from whatever came, so nothing here has the type that it is said to have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flywheel.messages import ToolCall, without_thinking

_TEXTS, _THOUGHTS = ("text", "output_text"), ("thinking", "reasoning", "summary_text", "reasoning_text")


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of a model: its text, its reasoning and its tool calls."""

    text: str
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()


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
    return Reply(text, "\n".join(filter(None, thoughts)), _calls(message))


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


def _calls(message: Any) -> tuple[ToolCall, ...]:
    """Its tool calls, or the one function call of older servers; arguments are JSON text, or an object, or nothing."""
    calls = getattr(message, "tool_calls", None)
    if not isinstance(calls, list) or not calls:
        function = getattr(message, "function_call", None)
        return () if function is None else (_call("", function),)
    return tuple(_call(_field(call, "id"), _field(call, "function")) for call in calls)


def _call(call_id: Any, function: Any) -> ToolCall:
    arguments = _field(function, "arguments")
    text = json.dumps(arguments) if isinstance(arguments, dict) else arguments if isinstance(arguments, str) else ""
    text = text or "{}"
    return ToolCall(str(call_id or ""), str(_field(function, "name") or ""), text)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
