"""OpenTelemetry GenAI spans as OTLP JSON lines, a trace a run.

Follows the semantic conventions for generative AI of version 1.37 (https://opentelemetry.io/docs/specs/semconv/gen-ai),
which are still marked as in development: `chat` spans with `gen_ai.input.messages` and `gen_ai.output.messages`, as
structured attributes or as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import Field, ValidationError

from flywheel.conversation import inputs_of, opening_of, output_of
from flywheel.datasets.formats.chat_messages import Lenient, arguments_text, tools_of
from flywheel.datasets.formats.images import image_in
from flywheel.datasets.formats.parts import ContentParts
from flywheel.datasets.formats.records import ReadContext, Run, compact, episode, explain
from flywheel.datasets.formats.turns import ImportedTurn, ReadMessage, conversation_of
from flywheel.errors import RecordError
from flywheel.messages import Image, Message, ToolCall, text_of_inputs
from flywheel.trajectory import Split, Trajectory, digest

NAME = "otel"
CONVENTIONS = "1.37"
INPUT, OUTPUT, SYSTEM = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
TOOLS = "gen_ai.tool.definitions"


class _Attribute(Lenient):
    key: str
    value: dict[str, Any]


class _Span(Lenient):
    traceId: str
    name: str = ""
    startTimeUnixNano: int = 0
    endTimeUnixNano: int = 0
    attributes: list[_Attribute] = Field(default_factory=list)


class _Scope(Lenient):
    spans: list[_Span] = Field(default_factory=list)


class _Resource(Lenient):
    scopeSpans: list[_Scope] = Field(default_factory=list)


class _Export(Lenient):
    resourceSpans: list[_Resource]


class _Message(Lenient):
    role: str
    content: Any = None
    parts: list[dict[str, Any]] = Field(default_factory=list)


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
    """A trace: of each span what was new in its input, then its output."""
    read: list[ReadMessage] = []
    model, tools = "unknown", None
    for span in spans:
        values = {attribute.key: _value(attribute.value) for attribute in span.attributes}
        inputs, outputs = _messages(values.get(INPUT)), _messages(values.get(OUTPUT))
        model = str(values.get("gen_ai.request.model") or values.get("gen_ai.response.model") or model)
        tools = tools or tools_of(_json(values.get(TOOLS)))
        system = _parts_of(values.get(SYSTEM))
        if system and not read:
            read.append(_read_message("system", system, source))
        last = max((place for place, message in enumerate(inputs) if message.role == "assistant"), default=-1)
        for message in inputs[last + 1 if span is not spans[0] else 0 :]:
            read += _read_messages(message, source)
        answer = _answer(outputs, source)
        seconds = max(0.0, _seconds(span.endTimeUnixNano, source) - _seconds(span.startTimeUnixNano, source))
        turn = ImportedTurn(
            (),
            answer.message,
            prompt_tokens=source.count(INPUT_TOKENS, values.get(INPUT_TOKENS)),
            completion_tokens=source.count(OUTPUT_TOKENS, values.get(OUTPUT_TOKENS)),
            seconds=seconds,
            trainable=answer.turn.trainable,
        )
        read.append(ReadMessage(answer.message, answer.images, turn))
    conversation = conversation_of(read)
    return Run(
        conversation.instruction,
        conversation.turns,
        model,
        CONVENTIONS,
        [span.model_dump(mode="json") for span in spans],
        conversation.rest,
        system=conversation.system,
        tools=tools,
        started_at=_seconds(spans[0].startTimeUnixNano, source),
        images=conversation.images,
    )


def _value(value: Mapping[str, Any]) -> Any:
    """An attribute's value in plain JSON."""
    kind, inner = next(iter(value.items()), ("", None))
    if isinstance(inner, dict) and kind in ("arrayValue", "kvlistValue"):
        values = inner.get("values", [])
        if kind == "arrayValue":
            return [_value(each) for each in values]
        return {each["key"]: _value(each["value"]) for each in values}
    return int(inner) if kind == "intValue" and isinstance(inner, str) and inner.lstrip("-").isdigit() else inner


def _json(value: Any) -> Any:
    """What an attribute holds, as text or in OTLP's own nested form."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"messages are not JSON: {' '.join(str(error).split())}") from error


def _messages(value: Any) -> list[_Message]:
    messages = _json(value)
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise RecordError("messages are not a list")
    return [_Message.model_validate(message) for message in messages]


def _parts_of(value: Any) -> list[dict[str, Any]]:
    """Parts of a text, of a list of parts, or of nothing."""
    content = _json(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _read_messages(message: _Message, source: ReadContext) -> list[ReadMessage]:
    """A message of the input; results of several tools are a message each. Earlier answers are context."""
    parts = message.parts or _parts_of(message.content)
    results = [part for part in parts if part.get("type") == "tool_call_response"]
    rest = [part for part in parts if part.get("type") != "tool_call_response"]
    read = [
        ReadMessage(Message("tool", _shown(_response(part)), tool_call_id=_name(part.get("id")))) for part in results
    ]
    if results and not rest:
        return read
    context = _read_message(message.role, rest, source)
    return [*read, replace(context, turn=replace(context.turn, trainable=False))]


def _answer(outputs: Sequence[_Message], source: ReadContext) -> ReadMessage:
    """All that the model put out, as one answer."""
    return _read_message(
        "assistant", [part for each in outputs for part in each.parts or _parts_of(each.content)], source
    )


def _read_message(role: str, parts: Sequence[Mapping[str, Any]], source: ReadContext) -> ReadMessage:
    content, thoughts, calls = ContentParts(source), list[str](), list[ToolCall]()
    for part in parts:
        kind, inner = part.get("type", "text"), part.get("content")
        if kind == "text":
            content.add_text(_shown(inner))
        elif kind == "reasoning":
            thoughts.append(_shown(inner))
        elif kind == "tool_call":
            calls.append(
                ToolCall(_name(part.get("id")) or "", str(part.get("name", "")), arguments_text(part.get("arguments")))
            )
        elif kind in ("blob", "uri") and part.get("modality", "image") == "image":
            inline = f"data:{part.get('mime_type', 'image/png')};base64,{inner}"
            content.add_image(partial(image_in, inline if kind == "blob" else str(part.get("uri"))))
        else:
            content.keep(dict(part), kind)
    message = Message(role, content.text, content.json, "\n".join(thoughts) or None, tuple(calls))
    return ReadMessage(message, content.images, ImportedTurn((), message, trainable=content.whole))


def _response(part: Mapping[str, Any]) -> Any:
    return part.get("response", part.get("result", part.get("content")))


def _shown(content: Any) -> str:
    return "" if content is None else content if isinstance(content, str) else compact(content)


def _name(value: Any) -> str | None:
    return None if value is None else str(value)


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
    history = [_written(message) for message in opening_of(trajectory)]
    for step in trajectory.steps:
        history += [_written(message) for message in inputs_of(step)]
        answer = _written(output_of(step))
        end = at + int(max(0.0, step.seconds) * 1e9)
        known = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": step.policy_id,
            INPUT: compact(history),
            OUTPUT: compact([answer]),
            INPUT_TOKENS: step.prompt_tokens,
            OUTPUT_TOKENS: step.completion_tokens,
            TOOLS: trajectory.tools,
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


def _written(message: Message) -> dict[str, Any]:
    """A message in the conventions' form; images are left out."""
    parts: list[dict[str, Any]] = []
    if message.reasoning:
        parts.append({"type": "reasoning", "content": message.reasoning})
    if message.role == "tool":
        response = text_of_inputs([message])
        parts.append({"type": "tool_call_response", "id": message.tool_call_id, "response": response})
    elif message.content or not message.tool_calls:
        parts.append({"type": "text", "content": message.content})
    parts += [
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return {"role": message.role, "parts": parts}


def _span(trace: str, span: str, parent: str, name: str, start: int, end: int, known: dict[str, Any]) -> dict[str, Any]:
    values = [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in known.items()
        if value is not None
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
