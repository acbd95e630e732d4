"""The APIs that agents speak: what of a request and a response is conversation, and how streams are put together.

OpenAI's Chat Completions and Responses, and Anthropic's Messages. Whatever else a request or a response holds passes
through untouched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.datasets.formats.chat_messages import ChatMessage
from flywheel.datasets.formats.responses import messages_of_items

Json = dict[str, Any]
_WHOLE = frozenset({"id", "type", "role", "name", "object", "model", "index"})
"""Fields of a stream's pieces that are told whole, however often."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API puts a conversation.

    `items`: the field of a request that holds it. `answers`: the alternatives of a response, each a list of items.
    `last`: what begins the last event of a stream. `fold`: a stream's events as the response that they are, or None for
    one that broke off. `messages`: items as chat messages. `usage`: names of the tokens read and written. `system`: the
    field of a request that holds the system prompt, where it stands beside the items.
    """

    name: str
    items: str
    answers: Callable[[Json], list[list[Any]]]
    last: re.Pattern[bytes]
    fold: Callable[[Iterable[Json]], Json | None]
    messages: Callable[[Sequence[Any]], list[ChatMessage]]
    usage: tuple[str, str]
    system: str = ""
    is_continued_by_id: bool = False

    def items_of(self, request: Json) -> list[Any]:
        """The conversation that a request brings."""
        items = request.get(self.items)
        if isinstance(items, str):
            return [{"role": "user", "content": items}]
        return items if isinstance(items, list) else []


def events(stream: bytes) -> Iterator[Json]:
    """The JSON objects of server-sent events; what is none is left out."""
    for block in re.split(rb"\r?\n\r?\n", stream):
        lines = [line[5:].strip() for line in block.splitlines() if line.startswith(b"data:")]
        try:
            event = json.loads(b"\n".join(lines)) if lines else None
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event


# -- Chat Completions --------------------------------------------------------------------------------------------------


def _chat_answers(response: Json) -> list[list[Any]]:
    choices = [choice for choice in _listed(response.get("choices")) if isinstance(choice, dict)]
    return [[choice["message"]] for choice in choices if isinstance(choice.get("message"), dict)]


def _fold_chat(chunks: Iterable[Json]) -> Json | None:
    response: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for name, value in chunk.items():
            if name != "choices" and value is not None:
                response[name] = value
        for piece in filter(_is_object, _listed(chunk.get("choices"))):
            number = piece.get("index") or 0
            choice = choices.setdefault(number, {"index": number, "message": {"role": "assistant", "content": None}})
            _merge(choice["message"], piece.get("delta") or {})
            if piece.get("finish_reason"):
                choice["finish_reason"] = piece["finish_reason"]
            if piece.get("logprobs"):
                _merge(choice.setdefault("logprobs", {}), piece["logprobs"])
    if not choices or any("finish_reason" not in choice for choice in choices.values()):
        return None
    return {**response, "object": "chat.completion", "choices": [choices[number] for number in sorted(choices)]}


def _merge(whole: Json, piece: Mapping[str, Any]) -> None:
    """Add a piece of a stream: texts are continued, list entries with an index are merged, others appended."""
    for name, value in piece.items():
        before = whole.get(name)
        if before is None or value is None or name in _WHOLE:
            if value is not None and (before is None or name not in _WHOLE):
                whole[name] = _by_index(value) if isinstance(value, list) else value
        elif isinstance(before, str) and isinstance(value, str):
            whole[name] = before + value
        elif isinstance(before, dict) and isinstance(value, dict):
            _merge(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            whole[name] = _by_index([*before, *value])
        else:
            whole[name] = value


def _by_index(entries: Sequence[Any]) -> list[Any]:
    """Entries of one index as one."""
    merged: list[Any] = []
    places: dict[int, Json] = {}
    for entry in entries:
        number = entry.get("index") if isinstance(entry, dict) else None
        if isinstance(number, int) and number in places:
            _merge(places[number], entry)
            continue
        merged.append(dict(entry) if isinstance(entry, dict) else entry)
        if isinstance(number, int):
            places[number] = merged[-1]
    return merged


# -- Responses ---------------------------------------------------------------------------------------------------------


def _response_answers(response: Json) -> list[list[Any]]:
    output = _listed(response.get("output"))
    return [output] if output else []


def _fold_responses(stream: Iterable[Json]) -> Json | None:
    items: list[Any] = []
    for event in stream:
        if event.get("type") == "response.output_item.done":
            items.append(event.get("item"))
        response = event.get("response")
        if event.get("type") in ("response.completed", "response.incomplete") and isinstance(response, dict):
            return {**response, "output": response.get("output") or items}
    return None


# -- Anthropic's Messages ----------------------------------------------------------------------------------------------


def _anthropic_answers(response: Json) -> list[list[Any]]:
    content = response.get("content")
    return [[{"role": "assistant", "content": content}]] if content else []


def _fold_anthropic(stream: Iterable[Json]) -> Json | None:
    response: Json | None = None
    blocks: dict[int, Json] = {}
    for event in stream:
        kind, number = event.get("type"), event.get("index") or 0
        if kind == "message_start" and isinstance(event.get("message"), dict):
            response = dict(event["message"])
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            blocks[number] = dict(event["content_block"])
        elif kind == "content_block_delta" and number in blocks and isinstance(event.get("delta"), dict):
            for name in ("text", "thinking", "signature", "partial_json"):
                if name in event["delta"]:
                    blocks[number][name] = blocks[number].get(name, "") + str(event["delta"][name])
        elif kind == "message_delta" and response is not None:
            response |= event.get("delta") or {}
            response["usage"] = (response.get("usage") or {}) | (event.get("usage") or {})
        elif kind == "message_stop" and response is not None:
            return {**response, "content": [_with_input(blocks[number]) for number in sorted(blocks)]}
    return None


def _with_input(block: Json) -> Json:
    """A block whose input came as JSON text."""
    if "partial_json" not in block:
        return block
    text = block.pop("partial_json")
    try:
        return {**block, "input": json.loads(text or "{}")}
    except (ValueError, RecursionError):
        return {**block, "input": text}


def _validated(items: Sequence[Any]) -> list[ChatMessage]:
    return [ChatMessage.model_validate(item) for item in items]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


CHAT = Dialect(
    "chat",
    "messages",
    _chat_answers,
    re.compile(rb"data: ?\[DONE\]"),
    _fold_chat,
    _validated,
    ("prompt_tokens", "completion_tokens"),
)
RESPONSES = Dialect(
    "responses",
    "input",
    _response_answers,
    re.compile(rb"(?:event: ?|data: ?\{\s*\"type\": ?\")response\.(?:completed|incomplete|failed)"),
    _fold_responses,
    messages_of_items,
    ("input_tokens", "output_tokens"),
    "instructions",
    is_continued_by_id=True,
)
ANTHROPIC = Dialect(
    "anthropic",
    "messages",
    _anthropic_answers,
    re.compile(rb"(?:event: ?|data: ?\{\s*\"type\": ?\")message_stop"),
    _fold_anthropic,
    _validated,
    ("input_tokens", "output_tokens"),
    "system",
)
DIALECTS = {dialect.name: dialect for dialect in (CHAT, RESPONSES, ANTHROPIC)}
PATHS = {"chat/completions": CHAT, "responses": RESPONSES, "messages": ANTHROPIC}
"""Path below /v1 → what is spoken there."""
