"""OpenTelemetry GenAI spans as OTLP JSON lines, a trace a run.

Follows the semantic conventions for generative AI of version 1.37 (https://opentelemetry.io/docs/specs/semconv/gen-ai),
which are still marked as in development: `chat` spans with `gen_ai.input.messages` and `gen_ai.output.messages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flywheel.datasets.formats.records import ImportedTurn, ReadContext, Run, called, compact, episode, explain
from flywheel.errors import RecordError
from flywheel.trajectory import Image, Split, Trajectory, digest

NAME = "otel"
CONVENTIONS = "1.37"
INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Attribute(_Lenient):
    key: str
    value: dict[str, Any]


class _Span(_Lenient):
    traceId: str
    name: str = ""
    startTimeUnixNano: int = 0
    endTimeUnixNano: int = 0
    attributes: list[_Attribute] = []


class _Scope(_Lenient):
    spans: list[_Span] = []


class _Resource(_Lenient):
    scopeSpans: list[_Scope] = []


class _Export(_Lenient):
    resourceSpans: list[_Resource]


class _Part(_Lenient):
    type: str = "text"
    content: Any = None
    response: Any = None
    name: str = ""
    arguments: Any = None


class _Message(_Lenient):
    role: str
    parts: list[_Part] = []


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """The traces of one export that hold `chat` spans with their messages; other traces are ignored."""
    try:
        export = _Export.model_validate(record)
        traces: dict[str, list[_Span]] = {}
        for span in (
            exported_span for part in export.resourceSpans for scope in part.scopeSpans for exported_span in scope.spans
        ):
            if any(attribute.key == OUTPUT for attribute in span.attributes):
                traces.setdefault(span.traceId, []).append(span)
        runs = [_run(sorted(spans, key=lambda span: span.startTimeUnixNano), source) for spans in traces.values()]
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    if not runs:
        raise RecordError(f"no span holds {OUTPUT}; were messages captured?")
    for run in runs:
        yield episode(NAME, run, split)


def _run(spans: list[_Span], source: ReadContext) -> Run:
    turns: list[ImportedTurn] = []
    instruction, model = "", "unknown"
    for span in spans:
        values = {attribute.key: next(iter(attribute.value.values()), None) for attribute in span.attributes}
        input_messages, output_messages = _messages(values.get(INPUT)), _messages(values.get(OUTPUT))
        model = str(values.get("gen_ai.request.model") or values.get("gen_ai.response.model") or model)
        instruction = instruction or next((_text(message) for message in input_messages if message.role == "user"), "")
        last = max((place for place, message in enumerate(input_messages) if message.role == "assistant"), default=-1)
        new = "\n\n".join(_text(message) for message in input_messages[last + 1 :])
        parts = [part for message in output_messages for part in message.parts]
        calls = [called(part.name, part.arguments or {}) for part in parts if part.type == "tool_call"]
        text = "\n".join(_text(message) for message in output_messages)
        thoughts = [str(part.content) for part in parts if part.type == "reasoning"]
        turns.append(
            ImportedTurn(
                observation=new,
                action="\n".join(calls) or text,
                feedback=new if turns else "",
                thought="\n".join([*thoughts, *([text] if calls and text else [])]),
                prompt_tokens=source.count(INPUT_TOKENS, values.get(INPUT_TOKENS)),
                completion_tokens=source.count(OUTPUT_TOKENS, values.get(OUTPUT_TOKENS)),
                seconds=max(0.0, _seconds(span.endTimeUnixNano, source) - _seconds(span.startTimeUnixNano, source)),
            )
        )
    verbatim = [span.model_dump(mode="json") for span in spans]
    return Run(
        instruction, turns, model, CONVENTIONS, verbatim, started_at=_seconds(spans[0].startTimeUnixNano, source)
    )


def _messages(value: Any) -> list[_Message]:
    """Messages come as JSON text, or as OTLP's own nested values are not: those are refused."""
    if value is None:
        return []
    try:
        messages = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"messages are not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(messages, list):
        raise RecordError("messages are not a JSON list in a string")
    return [_Message.model_validate(message) for message in messages]


def _text(message: _Message) -> str:
    shown = [
        part.response if part.type == "tool_call_response" else part.content
        for part in message.parts
        if part.type in ("text", "tool_call_response")
    ]
    return "\n".join(
        content if isinstance(content, str) else compact(content) for content in shown if content is not None
    )


def _seconds(nanoseconds: int, source: ReadContext) -> float:
    """Seconds since 1970 of an OTLP time, which has 64 bits; 0, and reported, for what is none."""
    if 0 <= nanoseconds < 2**64:
        return nanoseconds / 1e9
    source.count_unread("a time outside 64 bits")
    return 0.0


def write(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """One trace: an `invoke_agent` span over a `chat` span a step. Imported traces are written anew."""
    trace, root = digest("trace", trajectory.trajectory_id, size=16), digest("span", trajectory.trajectory_id)
    at = int(max(0.0, trajectory.started_at) * 1e9)
    spans: list[dict[str, Any]] = []
    history = [_message("system", trajectory.instruction)]
    for step in trajectory.steps:
        history.append(_message("user", step.observation))
        answer = _message("assistant", step.action)
        end = at + int(max(0.0, step.seconds) * 1e9)
        known = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": step.policy_id,
            INPUT: compact(history),
            OUTPUT: compact([answer]),
            INPUT_TOKENS: step.prompt_tokens,
            OUTPUT_TOKENS: step.completion_tokens,
        }
        span = digest("span", trajectory.trajectory_id, step.index)
        spans.append(_span(trace, span, root, f"chat {step.policy_id}", at, end, known))
        history.append(answer)
        at = end
    whole = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": trajectory.policy}
    first = int(max(0.0, trajectory.started_at) * 1e9)
    spans.insert(0, _span(trace, root, "", f"invoke_agent {trajectory.policy}", first, at, whole))
    return {
        "resourceSpans": [
            {"resource": {"attributes": []}, "scopeSpans": [{"scope": {"name": "flywheel"}, "spans": spans}]}
        ]
    }


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _span(trace: str, span: str, parent: str, name: str, start: int, end: int, known: dict[str, Any]) -> dict[str, Any]:
    values = [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in known.items()
    ]
    return {
        "traceId": trace,
        "spanId": span,
        "parentSpanId": parent,
        "name": name,
        "kind": 3 if parent else 1,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": values,
    }
