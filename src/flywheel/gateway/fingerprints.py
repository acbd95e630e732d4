"""Conversations as chains of digests: equal prefixes, equal digests.

Clients send back what they were told in other words: content as text or in parts, arguments with other spaces, without
reasoning, with fields of their own. A digest is of what was said, not of how it was spelled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

ROLES = {"developer": "system", "function": "tool"}
_TEXT = frozenset({"text", "input_text", "output_text"})
_UNSAID = frozenset({"reasoning", "thinking", "redacted_thinking"})
"""Items and parts that clients may leave out."""


def chain(items: Sequence[Any], before: bytes = b"") -> list[bytes]:
    """The digest of the conversation up to and with each item, `before` standing for what came earlier. An item that
    says nothing has the digest of the one before it."""
    digests = []
    for item in items:
        for text in _said(item):
            before = hashlib.blake2b(before + text.encode(errors="surrogatepass"), digest_size=16).digest()
        digests.append(before)
    return digests


def _said(item: Any) -> list[str]:
    """What an item says, as texts. Plain messages are most of all, and take the short way."""
    if not isinstance(item, dict):
        return [_json(item)]
    content, kind = item.get("content"), item.get("type", "message")
    if isinstance(content, str) and kind == "message" and not ("tool_calls" in item or "function_call" in item):
        return [_plain(item, content)]
    if kind in _UNSAID:
        return []
    if kind in ("function_call", "custom_tool_call"):
        return [_call(item.get("name"), item.get("arguments", item.get("input")))]
    if kind in ("function_call_output", "custom_tool_call_output"):
        return [_json(["result", item.get("call_id"), *_content(item.get("output"))])]
    if "role" not in item:
        return [_json({name: value for name, value in item.items() if name not in ("id", "status")})]
    text, *rest = _content(content)
    calls = item["tool_calls"] if isinstance(item.get("tool_calls"), list) else []
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    made = [function for function in [*functions, item.get("function_call")] if isinstance(function, dict)]
    calls_text = [_call(function.get("name"), function.get("arguments")) for function in made]
    return [_plain(item, text), *([_json(rest)] if rest else []), *calls_text]


def _plain(item: dict[str, Any], text: str) -> str:
    role = str(item.get("role"))
    return f"{ROLES.get(role, role)}\0{item.get('tool_call_id') or ''}\0{text.strip()}"


def _call(name: Any, arguments: Any) -> str:
    return _json(["call", name, _arguments(arguments)])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def call_ids(items: Sequence[Any]) -> set[str]:
    """The ids of the tool calls that items make or answer."""
    ids: set[str] = set()
    for item in items:
        if not isinstance(item, dict):
            continue
        parts = item.get("content") if isinstance(item.get("content"), list) else []
        calls = item.get("tool_calls") if isinstance(item.get("tool_calls"), list) else []
        for entry in (item, *(parts or ()), *(calls or ())):
            if isinstance(entry, dict):
                names = ("call_id", "tool_call_id", "tool_use_id", *(("id",) if _is_call(entry) else ()))
                ids |= {entry[name] for name in names if isinstance(entry.get(name), str)}
    return ids


def _is_call(entry: dict[str, Any]) -> bool:
    return entry.get("type") == "tool_use" or "function" in entry


def _content(content: Any) -> list[Any]:
    """[the text, whatever else there is]."""
    if isinstance(content, str) or content is None:
        return [(content or "").strip()]
    texts, rest = list[str](), list[Any]()
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in _TEXT and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "tool_use":
            rest.append(["call", part.get("name"), _arguments(part.get("input"))])
        elif kind == "tool_result":
            rest.append(["result", part.get("tool_use_id"), *_content(part.get("content"))])
        elif kind not in _UNSAID:
            kept = part.items() if isinstance(part, dict) else ()
            rest.append({name: value for name, value in kept if name != "cache_control"} or part)
    return ["".join(texts).strip(), *rest]


def _arguments(arguments: Any) -> Any:
    """Arguments as the value that their JSON text spells, where it is some."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
