"""Chat messages as servers and clients really write them: OpenAI's form, its older ones, Anthropic's, Inspect's.

Content comes as text or in parts, reasoning under several names, calls as `tool_calls`, `function_call` or `tool_use`
parts. What is not understood stays in the message's `parts` and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flywheel.datasets.formats.images import image_in
from flywheel.datasets.formats.parts import ContentParts
from flywheel.datasets.formats.records import ReadContext, compact, explain, written_json
from flywheel.datasets.formats.turns import ImportedTurn, ReadMessage
from flywheel.messages import Message, ToolCall, without_thinking

_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT = ("text", "input_text", "output_text")
_THOUGHT = ("thinking", "reasoning", "summary_text", "reasoning_text")
_IMAGE = ("image", "image_url", "input_image")


class Lenient(BaseModel):
    """Providers add fields of their own; they are counted as unread."""

    model_config = ConfigDict(extra="allow")


class _Function(Lenient):
    name: str
    arguments: Any = ""


class _Call(Lenient):
    id: str | None = None
    type: str | None = None
    function: _Function


class ChatMessage(Lenient):
    """A message of a log."""

    role: str
    content: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    error: Any = None
    weight: float | None = None


def messages_of(raw: Sequence[Any]) -> list[Message]:
    """The messages of a chat request. Raises `ValueError` for what is none."""
    source = ReadContext()
    try:
        return [read.message for each in raw for read in read_messages(ChatMessage.model_validate(each), source)]
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def read_messages(raw: ChatMessage, source: ReadContext) -> list[ReadMessage]:
    """A message; several where one of Anthropic's holds tool results beside what the user says."""
    parts = raw.content if isinstance(raw.content, list) else None
    if parts is None:
        return [_message(raw, _text(raw.content, source), None, source)]
    results = [part for part in parts if _type(part) == "tool_result"]
    rest = [part for part in parts if _type(part) != "tool_result"]
    messages = [_result(part, source) for part in results]
    return messages if results and not rest else [*messages, _in_parts(raw, rest, source)]


def _in_parts(raw: ChatMessage, parts: Sequence[Any], source: ReadContext) -> ReadMessage:
    """A message whose content is a list. Reasoning and calls are taken out of it."""
    content, thoughts, calls = ContentParts(source), list[str](), list[ToolCall]()
    for part in parts:
        kind = _type(part)
        if kind in _TEXT and isinstance(_inner(part, "text"), str):
            content.add_text(_inner(part, "text"))
        elif kind in _THOUGHT:
            thoughts.append(_thought(part, source))
        elif kind == "refusal":
            content.add_text(str(part.get("refusal") or ""))
        elif kind == "tool_use":
            calls.append(ToolCall(str(part.get("id") or ""), str(part.get("name")), arguments_text(part.get("input"))))
        elif kind in _IMAGE:
            content.add_image(partial(image_in, _address(part)))
        else:
            content.keep(part, kind)
    read = _message(raw, content.text, content.json, source, thoughts, calls)
    turn = replace(read.turn, trainable=read.turn.trainable and content.whole)
    return ReadMessage(read.message, content.images, turn)


def _message(
    raw: ChatMessage,
    text: str,
    parts: str | None,
    source: ReadContext,
    thoughts: Sequence[str] = (),
    calls: Sequence[ToolCall] = (),
) -> ReadMessage:
    if raw.role == "assistant" and parts is None:
        text, tagged = without_thinking(text)
        thoughts = [*thoughts, tagged] if tagged else thoughts
    reasoning = thoughts or [_thought(getattr(raw, name), source) for name in _REASONING]
    tool_calls = [*calls, *(_call(call.id, call.function) for call in raw.tool_calls or ())]
    if raw.function_call is not None:
        tool_calls.append(_call(None, raw.function_call))
    message = Message(
        role="tool" if raw.role == "function" else raw.role,
        content=text or raw.refusal or "",
        parts=parts,
        reasoning="\n".join(dict.fromkeys(filter(None, reasoning))) or None,
        tool_calls=tuple(tool_calls),
        tool_call_id=raw.tool_call_id,
        name=raw.name,
        error=_error(raw.error),
    )
    return ReadMessage(message, turn=ImportedTurn((), message, trainable=raw.weight != 0))


def _result(part: Mapping[str, Any], source: ReadContext) -> ReadMessage:
    """What a tool answered, in Anthropic's form."""
    raw = ChatMessage(role="tool", content=part.get("content"), tool_call_id=str(part.get("tool_use_id") or ""))
    (read,) = read_messages(raw, source)
    if not part.get("is_error"):
        return read
    message = read.message
    return ReadMessage(
        Message("tool", "", message.parts, tool_call_id=message.tool_call_id, error=message.content or "failed"),
        read.images,
    )


def tools_of(tools: Any, functions: Any = None) -> str | None:
    """Tools in OpenAI's form as JSON, from its own, its older or Anthropic's; None where there are none. The order of
    their parameters is kept: it is that in which a student writes them.
    """
    listed = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    older = [function for function in functions if isinstance(function, dict)] if isinstance(functions, list) else []
    written = [*(_tool(tool) for tool in listed), *({"type": "function", "function": each} for each in older)]
    return written_json(written) if written else None


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if "input_schema" in tool or ("name" in tool and "function" not in tool):
        rest = {name: value for name, value in tool.items() if name not in ("input_schema", "type")}
        parameters = tool.get("input_schema", tool.get("parameters"))
        return {"type": "function", "function": {**rest, **({"parameters": parameters} if parameters else {})}}
    return tool


def _call(call_id: str | None, function: _Function) -> ToolCall:
    return ToolCall(call_id or "", function.name, arguments_text(function.arguments))


def arguments_text(arguments: Any) -> str:
    """Arguments of a call as the JSON text that they are, or would be."""
    if arguments is None:
        return "{}"
    return arguments if isinstance(arguments, str) else compact(arguments)


def _text(content: Any, source: ReadContext) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    source.count_unread("content: neither text nor a list of parts")
    return compact(content)


def _thought(value: Any, source: ReadContext) -> str:
    """The words of reasoning: text, a part, or a list of them."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "\n".join(filter(None, (_thought(part, source) for part in value)))
    if isinstance(value, dict):
        for name in ("thinking", "reasoning", "text", "summary", "content"):
            if value.get(name):
                return _thought(value[name], source)
        return ""
    source.count_unread("reasoning: no text")
    return ""


def _error(error: Any) -> str | None:
    """What went wrong with a tool, as text."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("type") or compact(error)
    return str(error) if error else None


def _address(part: Mapping[str, Any]) -> str:
    """Where an image part says that its image is."""
    for name in ("image_url", "image", "source"):
        value = part.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            if isinstance(value.get("url"), str):
                return str(value["url"])
            if isinstance(value.get("data"), str):
                return f"data:{value.get('media_type', 'image/png')};base64,{value['data']}"
    return ""


def _type(part: Any) -> str | None:
    if isinstance(part, str):
        return "text"
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


def _inner(part: Any, name: str) -> Any:
    return part if isinstance(part, str) else part.get(name)
