"""Runs in the form of OpenAI's Responses API.

NeMo Gym's rollouts are `{"responses_create_params": {"input": …}, "response": {"output": …}, "reward": …}`; what has
`request` and `response`, or `input` and `output` side by side, is read, too. Items that the model put out one after
another (reasoning, a message, calls) are one answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from flywheel.datasets.formats.chat_messages import ChatMessage, Lenient, read_messages, tools_of
from flywheel.datasets.formats.records import ReadContext, Run, episode, explain
from flywheel.datasets.formats.turns import conversation_of
from flywheel.errors import RecordError
from flywheel.trajectory import Split, Trajectory
from flywheel.unknowns import known_sum

NAME = "responses"
_TOLD = ("function_call_output", "custom_tool_call_output")
"""Items that answer a call."""


class _Usage(Lenient):
    input_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None


class _Request(Lenient):
    input: str | list[Any]
    instructions: Any = None
    tools: Any = None


class _Response(Lenient):
    output: list[Any]
    model: str | None = None
    usage: _Usage | None = None
    created_at: Any = None


class _Rollout(Lenient):
    responses_create_params: _Request
    response: _Response
    reward: Any = None


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One run: what was asked and what was put out, results of tools included."""
    try:
        rollout = _Rollout.model_validate(_as_rollout(record))
        request, response = rollout.responses_create_params, rollout.response
        asked = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
        begin = [{"role": "system", "content": request.instructions}] if request.instructions else []
        raw = messages_of_items([*begin, *asked, *response.output])
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    for name in rollout.model_extra or ():
        source.count_unread(name)
    conversation = conversation_of(message for each in raw for message in read_messages(each, source))
    usage = response.usage or _Usage()
    run = Run(
        conversation.instruction,
        conversation.turns,
        response.model or "unknown",
        "1",
        record,
        conversation.rest,
        system=conversation.system,
        tools=tools_of(request.tools),
        reward=source.number("reward", rollout.reward, least=-math.inf),
        tokens=_used(usage, source),
        started_at=source.number("created_at", response.created_at) or 0.0,
        images=conversation.images,
    )
    yield episode(NAME, run, split)


def _used(usage: _Usage, source: ReadContext) -> int | None:
    total = source.count("usage.total_tokens", usage.total_tokens)
    counts = [source.count(f"usage.{name}", getattr(usage, name)) for name in ("input_tokens", "output_tokens")]
    return known_sum(counts) if total is None else total


def _as_rollout(record: Any) -> Any:
    """A record of a gateway, with request and response side by side, under NeMo Gym's keys."""
    if not isinstance(record, dict) or "responses_create_params" in record:
        return record
    if "request" in record:
        return {**record, "responses_create_params": record["request"]}
    if "input" in record and "output" in record:
        return {"responses_create_params": record, "response": record, "reward": record.get("reward")}
    return record


def messages_of_items(items: Iterable[Any]) -> list[ChatMessage]:
    """Items of a request or a response as chat messages. Raises `RecordError` for what is no item."""
    return list(_messages(_flat(items)))


def _flat(items: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """The items of a list, of lists in it, too."""
    for item in items:
        if isinstance(item, list):
            yield from _flat(item)
        elif isinstance(item, dict):
            yield item
        else:
            raise RecordError("an item that is no object")


def _messages(items: Iterable[Mapping[str, Any]]) -> Iterator[ChatMessage]:
    """Items as chat messages, those of one answer together. What else the model did stays among its parts."""
    answer: dict[str, Any] = {}
    for item in items:
        kind = item.get("type", "message")
        if kind not in _TOLD and (kind != "message" or item.get("role") == "assistant"):
            answer = answer or {"role": "assistant", "content": [], "tool_calls": [], "reasoning": []}
            if kind == "reasoning":
                answer["reasoning"] += [*_parts(item.get("summary")), *_parts(item.get("content"))]
            elif kind in ("function_call", "custom_tool_call"):
                function = {"name": item.get("name"), "arguments": item.get("arguments", item.get("input"))}
                answer["tool_calls"].append({"id": item.get("call_id"), "function": function})
            else:
                answer["content"] += _parts(item.get("content")) if kind == "message" else [item]
            continue
        if answer:
            yield _answer(answer)
            answer = {}
        if kind in _TOLD:
            yield ChatMessage(role="tool", content=item.get("output"), tool_call_id=item.get("call_id"))
        else:
            yield ChatMessage.model_validate({"role": item.get("role"), "content": item.get("content")})
    if answer:
        yield _answer(answer)


def _answer(answer: Mapping[str, Any]) -> ChatMessage:
    """An answer whose lone text is no list of parts."""
    parts = answer["content"]
    if all(isinstance(part, str) for part in parts):
        return ChatMessage.model_validate({**answer, "content": "\n".join(parts)})
    return ChatMessage.model_validate(answer)


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [] if content is None else [content]
