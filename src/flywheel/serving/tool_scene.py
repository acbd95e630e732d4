"""A chat request with tools as an episode of an agent that brings its own prompt: the same contexts as in training.

Who asks keeps the conversation, so every request tells the whole of it; subgoals are not in it, and a planner that
takes over an episode in the middle names a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flywheel.agents.policy import Decision
from flywheel.datasets.formats.chat_messages import messages_of, tools_of
from flywheel.datasets.formats.turns import ReadMessage, conversation_of
from flywheel.environments.protocol import Observation
from flywheel.messages import Message, action_of, text_of_inputs
from flywheel.serving.dialogue import Scene
from flywheel.serving.transcripts import Transcript, TurnTexts
from flywheel.trajectory import Split, Task


def tool_scene(
    messages: Sequence[Any], tools: Sequence[Any], tool_choice: Any = None, answer_schema: str = ""
) -> Scene:
    """What a request tells. `answer_schema`: of an answer in text, where it has to be JSON.

    Raises `ValueError` for what is no conversation that waits for an answer.
    """
    read = messages_of(messages)
    conversation = conversation_of(map(ReadMessage, read))
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
    now = replace(_seen(conversation.rest, offered, first=not past), must_call=must_call, answer_schema=answer_schema)
    turns = list(map(spelling, read))
    answered = len(read) - len(conversation.rest)
    return Scene(
        task=Task("served", "{}", Split.TRAIN, 0, ""),
        turns=len(past),
        past=lambda: past,
        now=now,
        audit="",
        before=Transcript().then(turns[:answered]),
        newest=turns[answered:],
    )


def spelling(message: Message) -> TurnTexts:
    """A message as a turn of a transcript; ids of calls are their client's, and none of ours."""
    calls = [text for call in message.tool_calls for text in (call.name, call.arguments)]
    return (message.role, message.content, *calls)


def _seen(inputs: Sequence[Message], tools: str, *, first: bool) -> Observation:
    return Observation(
        text_of_inputs(inputs),
        whole=True,
        tools=tools,
        messages=tuple(inputs),
        opens_task=first,
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
