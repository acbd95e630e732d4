"""What OpenAI-compatible servers really send, read: content in parts, reasoning under several names, odd arguments.

The OpenAI client builds its objects from whatever came, so nothing here has the type that it is said to have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_THINK = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>\s*", re.DOTALL)
_TEXTS, _THOUGHTS = ("text", "output_text"), ("thinking", "reasoning", "summary_text", "reasoning_text")


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of a model: its words, its thoughts, and the arguments of its first tool call, if it made one."""

    text: str
    thought: str = ""
    arguments: Mapping[str, Any] | None = None


def reply_of(message: Any) -> Reply:
    """What a message says."""
    texts, thoughts = _parts(getattr(message, "content", None))
    for name in ("reasoning", "reasoning_content", "thinking"):
        told = getattr(message, name, None)
        if told and not thoughts:
            thoughts = [told] if isinstance(told, str) else [*_parts(told)[0], *_parts(told)[1]]
    text = "\n".join(texts)
    if match := _THINK.match(text):
        thoughts, text = [*thoughts, match[1].strip()], text[match.end() :]
    refusal = getattr(message, "refusal", None)
    if not text and isinstance(refusal, str):
        text = refusal
    return Reply(text, "\n".join(filter(None, thoughts)), _arguments(message))


def error_of(reply: Any) -> tuple[int, str] | None:
    """(code or 0, message) of an error that came with status 200, as proxies send it; None where there is none."""
    told = getattr(reply, "error", None)
    if not told:
        return None
    if not isinstance(told, dict):
        return 0, str(told)
    code = told.get("code")
    return code if isinstance(code, int) else 0, str(told.get("message") or told)


def count_of(value: Any) -> int:
    """A count of tokens; 0 where the server does not tell one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _parts(content: Any) -> tuple[list[str], list[str]]:
    """(texts, thoughts) of content, which is text or a list of parts."""
    if isinstance(content, str):
        return [content], []
    texts, thoughts = list[str](), list[str]()
    for part in content if isinstance(content, list) else ():
        kind, inner = (part.get("type"), part) if isinstance(part, dict) else ("text", {"text": part})
        if kind in _THOUGHTS:
            told = inner.get(kind, inner.get("text"))
            thoughts += [told] if isinstance(told, str) else _parts(told)[0]
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
    told = function.get("arguments") if isinstance(function, dict) else getattr(function, "arguments", None)
    if isinstance(told, dict):
        return told
    if not isinstance(told, str):
        return {}
    try:
        found = json.loads(told)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
