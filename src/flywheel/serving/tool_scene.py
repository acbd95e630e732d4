"""A chat request with tools as an episode of an agent that brings its own prompt: the same contexts as in training.

Who asks keeps the conversation, so every request tells the whole of it; subgoals are not in it, and a planner that
takes over an episode in the middle names a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from flywheel.agents.policy import Decision
from flywheel.datasets.formats.chat_messages import ChatMessage, read_messages, tools_of
from flywheel.datasets.formats.records import ReadContext, explain
from flywheel.datasets.formats.turns import conversation_of
from flywheel.environments.protocol import Observation
from flywheel.environments.tools import names_of
from flywheel.messages import Message, action_of, calls_of, numbered, text_of_inputs
from flywheel.serving.dialogue import Scene
from flywheel.trajectory import Split, Task, digest


def tool_scene(messages: Sequence[Any], tools: Sequence[Any], tool_choice: Any = None) -> Scene:
    """What a request tells. Raises `ValueError` for what is no conversation that waits for an answer."""
    source = ReadContext()
    try:
        read = [each for raw in messages for each in read_messages(ChatMessage.model_validate(raw), source)]
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    conversation = conversation_of(read)
    if not conversation.rest:
        raise ValueError("the last message must not be the assistant's: there is nothing to answer")
    offered, must_call = _offered(tools, tool_choice)
    past = tuple(
        (
            _seen(turn.inputs, offered, first=number == 0),
            Decision(action_of(turn.output), output=turn.output),
        )
        for number, turn in enumerate(conversation.turns)
    )
    now = _seen(conversation.rest, offered, first=not past, must_call=must_call)
    said = [_spelling(each.message) for each in read]
    return Scene(
        task=Task("served", "{}", Split.TRAIN, 0, ""),
        past=past,
        now=now,
        audit="",
        before=digest(said[: -len(conversation.rest)], size=16),
        after=digest(said, size=16),
    )


def continued_with(messages: Sequence[Any], answer: Message) -> str:
    """The name of the dialogue once it has been answered: the next request's `before`."""
    source = ReadContext()
    read = [each.message for raw in messages for each in read_messages(ChatMessage.model_validate(raw), source)]
    return digest([*map(_spelling, read), _spelling(answer)], size=16)


def answer_of(action: str, tools: str, number: int) -> Message:
    """An action as the answer that it is: calls of tools that are offered, or else text."""
    offered, calls = names_of(tools), calls_of(action)
    if not calls or any(call.name not in offered for call in calls):
        return Message("assistant", action)
    return Message("assistant", tool_calls=numbered(calls, number))


def _seen(inputs: Sequence[Message], tools: str, *, first: bool, must_call: bool = False) -> Observation:
    return Observation(
        text_of_inputs(inputs),
        whole=True,
        tools=tools,
        messages=tuple(inputs),
        opens_task=first,
        must_call=must_call,
    )


def _offered(tools: Sequence[Any], choice: Any) -> tuple[str, bool]:
    """(the tools that may be called, must one of them be?). Raises `ValueError` for a choice that is none of them."""
    listed = tools_of(tools) or "[]"
    if choice in (None, "auto"):
        return listed, False
    if choice == "none":
        return "[]", False
    if choice == "required":
        return listed, True
    name = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else choice
    chosen = [tool for tool in tools if isinstance(tool, dict) and (tool.get("function") or tool).get("name") == name]
    if not chosen:
        raise ValueError(f"tool_choice: there is no tool {name!r}")
    return tools_of(chosen) or "[]", True


def _spelling(message: Message) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    return message.role, message.content, tuple((call.name, call.arguments) for call in message.tool_calls)
