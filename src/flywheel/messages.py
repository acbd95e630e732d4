"""Messages: what an agent was told and what it answered, as chat APIs have it, tool calls included.

The messages of a step are its record. Where an environment's observation is all that was said, and a line of text all
that was answered, the step's columns say it already and no message is stored beside them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any


@dataclass(frozen=True, slots=True)
class Image:
    """A screenshot, named by its content."""

    media_type: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the agent called. `arguments` is the JSON text that it wrote, broken or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """A chat message.

    `content` is its text. `parts` is the JSON list of its content parts, in OpenAI's form, where it has more than text;
    images are named there by their SHA-256. `reasoning` and `tool_calls` belong to answers; `tool_call_id`, `name` and
    `error` to what a tool returned.
    """

    role: str
    content: str = ""
    parts: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    error: str | None = None


_DECODER = json.JSONDecoder()
_THINK = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>\s*", re.DOTALL)


def without_thinking(text: str) -> tuple[str, str]:
    """(the answer, the reasoning that stands before it in `<think>` tags, or nothing)."""
    match = _THINK.match(text)
    return (text[match.end() :], match[1].strip()) if match else (text, "")


def text_of_inputs(messages: Iterable[Message]) -> str:
    """What was said to the agent, as one text: the column `observation`."""
    texts = ("\n".join(part for part in (message.content, message.error) if part) for message in messages)
    return "\n\n".join(text for text in texts if text)


def system_of(messages: Iterable[Message]) -> str | None:
    """The prompt that an agent was given before anything else."""
    prompts = takewhile(lambda message: message.role in ("system", "developer"), messages)
    return "\n\n".join(message.content for message in prompts) or None


def action_of(answer: Message) -> str:
    """What the agent did: its tool calls as `name arguments`, a line each, or else its text."""
    calls = [f"{call.name} {call.arguments}" for call in answer.tool_calls]
    return "\n".join(calls) if calls else answer.content


def calls_of(action: str) -> tuple[ToolCall, ...]:
    """The calls that an action of `name arguments` lines makes: what `action_of` wrote, without ids.

    Without arguments there are none, `{}`; those that are no JSON are kept as they are, with all that follows.
    """
    calls: list[ToolCall] = []
    while action:
        name, _, rest = action.partition(" ")
        try:
            _, end = _DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            end = len(rest)
        if rest[end : end + 1] not in ("", "\n"):
            end = len(rest)
        calls.append(ToolCall("", name, rest[:end] or "{}"))
        action = rest[end + 1 :]
    return tuple(calls)


def numbered(calls: Iterable[ToolCall], answer: int) -> tuple[ToolCall, ...]:
    """Calls with ids, for an answer whose writer gives none: the number of the answer, and the place in it."""
    return tuple(replace(call, id=f"call-{answer}-{place}") for place, call in enumerate(calls))


def answer_of_action(action: str, tools: Container[str], number: int) -> Message:
    """The answer behind an action: calls of known tools, with ids after the answer's number, or else text."""
    calls = calls_of(action)
    if not calls or any(call.name not in tools for call in calls):
        return Message("assistant", action)
    return Message("assistant", tool_calls=numbered(calls, number))


Normalise = Callable[[str, Any], Any]
"""(a tool's name, its arguments as JSON holds them) → arguments that are equal where they mean the same."""


def as_they_are(name: str, arguments: Any) -> Any:
    """Arguments mean the same where they are equal."""
    return arguments


def agree(first: Message, second: Message, normalise: Normalise = as_they_are) -> bool:
    """Do two answers do the same: call the same tools with equal arguments, or both speak?"""
    called = [[call_key(call, normalise) for call in each.tool_calls] for each in (first, second)]
    return called[0] == called[1]


def call_key(call: ToolCall, normalise: Normalise = as_they_are) -> tuple[str, str]:
    """What a call asks for, whatever the spaces and the order of its arguments; their text where they are no JSON."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.name, call.arguments
    return call.name, json.dumps(normalise(call.name, arguments), sort_keys=True)


def thought_of(answer: Message) -> str:
    """What the agent thought: its reasoning, and what it said beside tool calls."""
    beside_calls = answer.content if answer.tool_calls else ""
    return "\n".join(part for part in (answer.reasoning, beside_calls) if part)


def message_of(values: Mapping[str, Any]) -> Message:
    """A message of its fields by name, as files and documents hold it."""
    return Message(**{**values, "tool_calls": tuple(ToolCall(**call) for call in values["tool_calls"])})


def openai_message(message: Message, parts: Sequence[Any] | None = None) -> dict[str, Any]:
    """A message in OpenAI's chat form. `parts`: its content parts with images put in place, where it has any."""
    content: Any = text_of_inputs([message])
    if message.parts is not None:
        content = list(parts) if parts is not None else json.loads(message.parts)
        content += [{"type": "text", "text": message.error}] if message.error else []
    written: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    if message.tool_calls:
        written["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        written["name"] = message.name
    return written
