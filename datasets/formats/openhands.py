"""OpenHands' event logs: a list of actions and observations, or a record of its evaluations with such a `history`.

An action of the agent carries the model's own answer (`tool_call_metadata`), also where one answer made several calls;
an observation names the call that it answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from flywheel.datasets.formats.chat_messages import ChatMessage, read_messages, tools_of
from flywheel.datasets.formats.joining import join_by
from flywheel.datasets.formats.records import ReadContext, Run, episode, explain, seconds_of
from flywheel.datasets.formats.turns import ReadMessage, conversation_of
from flywheel.errors import RecordError
from flywheel.trajectory import Split, Trajectory

NAME = "openhands"
Event = Mapping[str, Any]
ACTIONS = frozenset(
    {"message", "run", "run_ipython", "read", "write", "edit", "browse", "browse_interactive", "delegate", "think"}
    | {"finish", "reject", "call_tool_mcp", "task_tracking"}
)
"""What an agent does of its own; other actions are the harness's."""


def _is_event(row: Any) -> bool:
    return "source" in row and ("action" in row or "observation" in row)


join_events = join_by(lambda row: "file" if _is_event(row) else None, "history")
"""The events of a file, as one record."""


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One run."""
    events = (record.get("history") or record.get("trajectory")) if isinstance(record, dict) else None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise RecordError("history: not a list of events")
    try:
        messages = list(_messages(events, source))
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    conversation = conversation_of(messages)
    answers = [answer for event in events if (answer := _response(event))]
    begin: Event = next((event for event in events if event.get("action") == "system"), {})
    times = (str(event["timestamp"]) for event in events if "timestamp" in event)
    run = Run(
        conversation.instruction,
        conversation.turns,
        next((str(answer["model"]) for answer in answers if answer.get("model")), "unknown"),
        "1",
        record,
        conversation.rest,
        system=conversation.system,
        tools=tools_of((begin.get("args") or {}).get("tools")),
        success=_resolved(record),
        error=str(record.get("error") or ""),
        started_at=seconds_of(next(times, None), source),
        images=conversation.images,
    )
    yield episode(NAME, run, split)


def _messages(events: list[Event], source: ReadContext) -> Iterator[ReadMessage]:
    answered: set[str] = set()
    for event in events:
        arguments = event.get("args") if isinstance(event.get("args"), dict) else {}
        assert isinstance(arguments, dict)
        if event.get("source") == "agent" and event.get("action") not in (None, "system"):
            answer = _response(event)
            if answer is None and event["action"] not in ACTIONS:
                source.count_unread(f"an action {event['action']}")
                continue
            named = str(answer["id"]) if answer is not None and answer.get("id") else ""
            if named in answered:
                continue  # another call of an answer that is there already
            answered |= {named} - {""}
            yield _answer(event, arguments, answer, source)
        elif event.get("action") in ("system", "message"):
            role = "system" if event["action"] == "system" else "user"
            pictures = [{"type": "image_url", "image_url": {"url": url}} for url in arguments.get("image_urls") or ()]
            text = arguments.get("content") or event.get("message")
            content: Any = [{"type": "text", "text": text}, *pictures] if pictures else text
            yield from read_messages(ChatMessage(role=role, content=content), source)
        elif "observation" in event and "content" in event and event.get("observation") != "agent_state_changed":
            yield from read_messages(_result(event), source)
        else:
            source.count_unread(f"an event {event.get('action') or event.get('observation')}")


def _answer(event: Event, arguments: Mapping[str, Any], answer: Event | None, source: ReadContext) -> ReadMessage:
    """The model's own answer; where none was kept, the action as a message or as a call."""
    if answer is not None:
        (read,) = read_messages(ChatMessage.model_validate(answer["choices"][0]["message"]), source)
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        assert isinstance(usage, dict)
        counts = [source.count(f"usage.{name}", usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        return replace(read, turn=replace(read.turn, prompt_tokens=counts[0], completion_tokens=counts[1]))
    if event["action"] == "message":
        raw = ChatMessage(role="assistant", content=arguments.get("content") or event.get("message"))
    else:
        rest = {name: value for name, value in arguments.items() if name != "thought"}
        call = {"id": str(event.get("id", "")), "function": {"name": event["action"], "arguments": json.dumps(rest)}}
        raw = ChatMessage.model_validate(
            {"role": "assistant", "content": arguments.get("thought") or "", "tool_calls": [call]}
        )
    (read,) = read_messages(raw, source)
    return read


def _result(event: Event) -> ChatMessage:
    """What an action came to."""
    metadata = event.get("tool_call_metadata")
    cause = event.get("cause")
    named = metadata.get("tool_call_id") if isinstance(metadata, dict) else None if cause is None else str(cause)
    failed = event["observation"] == "error"
    return ChatMessage(
        role="tool",
        content="" if failed else event["content"],
        error=event["content"] if failed else None,
        tool_call_id=named,
    )


def _response(event: Event) -> dict[str, Any] | None:
    """The model's answer behind an action."""
    metadata = event.get("tool_call_metadata")
    answer = metadata.get("model_response") if isinstance(metadata, dict) and "action" in event else None
    return answer if isinstance(answer, dict) and answer.get("choices") else None


def _resolved(record: Mapping[str, Any]) -> bool | None:
    """What its evaluation says, where there is one."""
    result = record.get("test_result")
    report = result.get("report") if isinstance(result, dict) else None
    resolved = record.get("resolved", report.get("resolved") if isinstance(report, dict) else None)
    return resolved if isinstance(resolved, bool) else None
