"""Answers as OpenAI's API has them: a message with text or tool calls, whole or as the events of a stream."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flywheel.messages import Message, openai_message

Json = dict[str, Any]


def choice(message: Message, *, index: int = 0, finish_reason: str = "", logprobs: Json | None = None) -> Json:
    """One of the answers of a `chat.completion`."""
    written = openai_message(message)
    if message.tool_calls and not message.content:
        written["content"] = None
    reason = finish_reason or ("tool_calls" if message.tool_calls else "stop")
    return {"index": index, "message": written, "finish_reason": reason, "logprobs": logprobs}


def completion(
    choices: Sequence[Json],
    model: str,
    usage: Mapping[str, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Json:
    """A `chat.completion`. `usage`: tokens read and written, where known; `metadata`: what Flywheel says of the
    answer, under a field of its own."""
    answer = {**head("chatcmpl", "chat.completion", model), "choices": list(choices)}
    if usage is not None:
        answer["usage"] = dict(usage)
    return {**answer, "flywheel": dict(metadata)} if metadata else answer


def events(answer: Json, *, include_usage: bool = False) -> Iterator[Json]:
    """The chunks of a stream that says what a `chat.completion` says. A decision is made as a whole, so the first
    chunk waits for all of it."""
    base = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    base["object"] = "chat.completion.chunk"
    for choice in answer["choices"]:
        index, message = choice["index"], choice["message"]
        opening = {"role": "assistant", "content": "" if message["content"] is not None else None}
        yield _chunk(base, index, opening, logprobs=choice["logprobs"])
        for piece in re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", message["content"] or ""):
            yield _chunk(base, index, {"content": piece})
        for place, call in enumerate(message.get("tool_calls") or ()):
            yield _chunk(base, index, {"tool_calls": [{"index": place, **call}]})
        yield _chunk(base, index, {}, reason=choice["finish_reason"])
    if include_usage:
        yield {**base, "choices": [], "usage": answer.get("usage")}


def as_event_stream(answer: Json, *, include_usage: bool = False) -> bytes:
    """The bytes of that stream."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events(answer, include_usage=include_usage)]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def head(kind: str, name: str, model: str) -> Json:
    """What every answer begins with."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()), "model": model}


def _chunk(base: Json, index: int, delta: Json, *, reason: str | None = None, logprobs: Json | None = None) -> Json:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return {**base, "choices": [choice | ({"logprobs": logprobs} if logprobs else {})]}
