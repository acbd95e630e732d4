"""Logged calls of a model, each with its whole history, as the run that they were.

Tracing tools log a call as what was sent and what came back. Of each call only what is new since the answer before is
what the agent was told then; answers before the first call are context and no steps to learn from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flywheel.datasets.formats.chat_messages import ChatMessage, read_messages
from flywheel.datasets.formats.records import ReadContext, Run
from flywheel.datasets.formats.turns import Conversation, ReadMessage, conversation_of
from flywheel.errors import RecordError
from flywheel.unknowns import known_sum


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call: what was sent, what came back, and what it took. Unknown counts are None.

    `has_history`: does `sent` hold the conversation before, too?
    """

    sent: Sequence[ChatMessage]
    answer: ChatMessage
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    seconds: float = 0.0
    logprobs: tuple[float, ...] | None = None
    has_history: bool = True


def conversation_of_calls(calls: Sequence[ModelCall], source: ReadContext) -> Conversation:
    """The run of calls in their order."""
    read: list[ReadMessage] = []
    for place, call in enumerate(calls):
        answers = [number for number, message in enumerate(call.sent) if message.role == "assistant"]
        for message in call.sent[(answers[-1] + 1 if answers and place and call.has_history else 0) :]:
            read += [_context(each) for each in read_messages(message, source)]
        *_, answer = read_messages(call.answer, source)
        turn = replace(
            answer.turn,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            cost=call.cost,
            seconds=call.seconds,
            logprobs=call.logprobs,
            policy=call.model if call.model != calls[0].model else "",
        )
        read.append(replace(answer, turn=turn))
    return conversation_of(read)


def run_of_calls(
    calls: Sequence[ModelCall],
    record: Any,
    source: ReadContext,
    *,
    tools: Iterable[str | None],
    started_at: float,
    reward: float | None = None,
    error: str = "",
) -> Run:
    """A trace as a run. `tools`: what each call was offered; the first that says so counts."""
    conversation = conversation_of_calls(calls, source)
    return Run(
        conversation.instruction,
        conversation.turns,
        next((call.model for call in calls if call.model), "unknown"),
        "1",
        record,
        conversation.rest,
        system=conversation.system,
        tools=next(filter(None, tools), None),
        reward=reward,
        cost=known_sum(call.cost for call in calls),
        tokens=known_sum(count for call in calls for count in (call.prompt_tokens, call.completion_tokens)),
        error=error,
        started_at=started_at,
        images=conversation.images,
    )


def _context(message: ReadMessage) -> ReadMessage:
    return replace(message, turn=replace(message.turn, trainable=False))


def chat_messages(value: Any) -> list[ChatMessage]:
    """Messages of a log: a list, a list of lists, an object with `messages`, JSON text of these, or plain text."""
    value = _parsed(value)
    if isinstance(value, dict):
        value = value.get("messages", value.get("input", [value] if "role" in value else None))
    if isinstance(value, str):
        return [ChatMessage(role="user", content=value)]
    if not isinstance(value, list):
        raise RecordError("a call without messages")
    inner = value[0] if len(value) == 1 and isinstance(value[0], list) else value
    return [_chat_message(message) for message in inner]


def answer_message(value: Any) -> ChatMessage | None:
    """What came back: a message, a completion with `choices`, LangChain's `generations`, what stands under `message`,
    `output` or `text`, or plain text. None where nothing did, as of a call that failed."""
    value = _parsed(value)
    while isinstance(value, list):
        value = value[-1] if value else None
    if isinstance(value, str):
        return ChatMessage(role="assistant", content=value)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("kwargs"), dict) or any(value.get(name) for name in _SAID):
        answer = _chat_message({"role": "assistant", **value}).model_copy(update={"role": "assistant"})
        return answer if answer.content or answer.tool_calls or answer.function_call or answer.refusal else None
    return answer_message(next((value[name] for name in _WRAPPED if value.get(name)), None))


_SAID = ("content", "tool_calls", "function_call", "refusal", "additional_kwargs")
"""What an answer holds."""
_WRAPPED = ("message", "choices", "generations", "messages", "output", "text")
"""Under what else an answer stands; of a list, it is the last."""
_ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "function": "tool"}
"""How LangChain calls the roles."""


def _chat_message(raw: Any) -> ChatMessage:
    """A message in OpenAI's form, or in LangChain's two: `{type, content}`, and `{lc, id, kwargs}`."""
    if not isinstance(raw, dict):
        raise RecordError("a message that is no object")
    if isinstance(raw.get("kwargs"), dict):
        kind = str((raw.get("id") or [""])[-1]).removesuffix("Message").removesuffix("MessageChunk").lower()
        raw = {"type": kind, **raw["kwargs"]}
    role = raw.get("role") or raw.get("type") or "user"
    more = raw.get("additional_kwargs")
    raw = {
        **(more if isinstance(more, dict) else {}),
        **{name: value for name, value in raw.items() if value not in (None, "", [])},
    }
    parts = raw["content"] if isinstance(raw.get("content"), list) else []
    used = {part.get("id") for part in parts if isinstance(part, dict) and part.get("type") == "tool_use"}
    calls = [
        {"id": call.get("id"), "function": {"name": call.get("name"), "arguments": call.get("args")}}
        if isinstance(call, dict) and "function" not in call
        else call
        for call in raw.get("tool_calls") or ()
        if not (isinstance(call, dict) and call.get("id") in used)
    ]
    known = {name: value for name, value in raw.items() if name in ChatMessage.model_fields}
    return ChatMessage.model_validate({**known, "role": _ROLES.get(str(role), str(role)), "tool_calls": calls or None})


def _parsed(value: Any) -> Any:
    """What text holds, where it is JSON of an object or a list."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
