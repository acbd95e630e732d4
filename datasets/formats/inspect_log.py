"""Inspect's logs in their JSON form (`inspect log convert --to json`), a sample a run; no Inspect is needed to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, ValidationError

from flywheel.datasets.formats.chat import closing, messages_of, opening
from flywheel.datasets.formats.chat_messages import ChatMessage, Lenient, read_messages, tools_of
from flywheel.datasets.formats.records import ReadContext, Run, episode, explain, seconds_of, verbatim
from flywheel.datasets.formats.turns import conversation_of
from flywheel.errors import RecordError
from flywheel.messages import Image
from flywheel.trajectory import Split, StopReason, Trajectory
from flywheel.unknowns import known_sum

NAME = "inspect"
_CORRECT = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
_LIMITS = {
    "token": StopReason.TOKEN_LIMIT,
    "message": StopReason.STEP_LIMIT,
    "turn": StopReason.STEP_LIMIT,
    "time": StopReason.TIME_LIMIT,
    "working": StopReason.TIME_LIMIT,
    "cost": StopReason.COST_LIMIT,
    "context": StopReason.TOKEN_LIMIT,
    "operator": StopReason.GAVE_UP,
}
"""What ended a sample early, by Inspect's name."""
_ATTACHMENT = "attachment://"


class _Score(Lenient):
    value: Any = None
    answer: Any = None
    explanation: Any = None
    metadata: Any = None


class _Error(Lenient):
    message: str = ""
    traceback: Any = None
    traceback_ansi: Any = None


class _Limit(Lenient):
    type: str = ""
    limit: Any = None


class _Usage(Lenient):
    total_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    total_cost: Any = None


class _Sample(Lenient):
    id: int | str
    epoch: int
    input: Any = None
    target: Any = None
    messages: list[dict[str, Any]] = Field(default_factory=list)
    tools: Any = None
    scores: dict[str, _Score] | None = None
    attachments: dict[str, str] = Field(default_factory=dict)
    error: _Error | None = None
    limit: _Limit | None = None
    model_usage: dict[str, _Usage] = Field(default_factory=dict)
    started_at: str | None = None


class _Spec(Lenient):
    task: str
    model: str


class _Log(Lenient):
    eval: _Spec
    sample: _Sample


def split(document: Any) -> list[Any]:
    """A whole log as one record a sample, each with the log's header."""
    if not isinstance(document, dict) or not isinstance(document.get("samples"), list):
        return [document]
    header = {name: value for name, value in document.items() if name != "samples"}
    return [{**header, "sample": sample} for sample in document["samples"]]


def read(record: Any, fold: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One sample. It succeeded if every score says so; where one is missing or unreadable, success is unknown. A sample
    that broke is neither success nor failure, whatever its scores."""
    try:
        log = _Log.model_validate(record)
        sample = log.sample
        raw = [_message(message, sample.attachments, source) for message in sample.messages]
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    source.count_fields(sample, "sample.")
    conversation = conversation_of(message for each in raw for message in read_messages(each, source))
    values = [_value(score.value, source) for score in (sample.scores or {}).values()]
    known = [value for value in values if value is not None]
    decided = bool(known) and (len(known) == len(values) or min(known) < 1.0) and sample.error is None
    run = Run(
        conversation.instruction,
        conversation.turns,
        log.eval.model,
        "1",
        record,
        conversation.rest,
        system=conversation.system,
        tools=tools_of(sample.tools),
        success=min(known) >= 1.0 if decided else None,
        score=min(known) if known else None,
        tokens=_used(sample, source),
        cost=_paid(sample, source),
        stop_reason=_stop_reason(sample),
        error=sample.error.message or "unknown error" if sample.error else "",
        started_at=seconds_of(sample.started_at, source),
        images=conversation.images,
    )
    yield episode(NAME, run, fold)


def _stop_reason(sample: _Sample) -> StopReason | None:
    if sample.error is not None:
        return StopReason.INFRASTRUCTURE
    if sample.limit is not None and not sample.scores:
        return _LIMITS.get(sample.limit.type, StopReason.STEP_LIMIT)
    return None


def _used(sample: _Sample, source: ReadContext) -> int | None:
    """Tokens of every model that the sample used."""
    counts = [source.count("model_usage.total_tokens", usage.total_tokens) for usage in sample.model_usage.values()]
    return known_sum(counts)


def _paid(sample: _Sample, source: ReadContext) -> float | None:
    costs = [source.number("model_usage.total_cost", usage.total_cost) for usage in sample.model_usage.values()]
    return known_sum(costs)


def _message(message: dict[str, Any], attachments: Mapping[str, str], source: ReadContext) -> ChatMessage:
    """A message as OpenAI writes it: calls under `function`, attachments in place."""
    plain = _attached(message, attachments)
    calls = plain.pop("tool_calls", None) or []
    if plain.get("role") == "tool":
        plain["name"] = plain.pop("function", None)
    for name in ("id", "model", "source", "metadata"):
        plain.pop(name, None)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        source.count_unread("tool_calls: not a list of calls")
        return ChatMessage.model_validate({**plain, "weight": 0})
    called = [
        {
            "id": str(call.get("id") or ""),
            "function": {"name": str(call.get("function")), "arguments": call.get("arguments") or {}},
        }
        for call in calls
    ]
    return ChatMessage.model_validate({**plain, "tool_calls": called or None})


def _attached(value: Any, attachments: Mapping[str, str]) -> Any:
    """A value with the attachments that it names in place, wherever they stand in it."""
    if isinstance(value, str) and value.startswith(_ATTACHMENT):
        return attachments.get(value.removeprefix(_ATTACHMENT), value)
    if isinstance(value, list):
        return [_attached(inner, attachments) for inner in value]
    if isinstance(value, dict):
        return {name: _attached(inner, attachments) for name, inner in value.items()}
    return value


def _value(value: Any, source: ReadContext) -> float | None:
    if isinstance(value, str):
        return _CORRECT.get(value)
    return source.number("score", value, most=1.0) if isinstance(value, bool | int | float) else None


def write(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """A log of one sample, as `read_eval_log` of Inspect takes it."""
    if (original := verbatim(trajectory, NAME)) is not None:
        header = {name: value for name, value in original.items() if name != "sample"}
        return {**header, "samples": [original["sample"]]}
    created = datetime.fromtimestamp(max(0.0, trajectory.started_at), UTC).isoformat()
    messages = [*opening(trajectory, {}), *messages_of(trajectory.steps, {}), *closing(trajectory, {})]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "created": created,
            "task": trajectory.environment,
            "model": f"flywheel/{trajectory.policy_id}",
            "dataset": {"name": trajectory.environment, "samples": 1},
            "config": {},
        },
        "samples": [
            {
                "id": trajectory.task_id,
                "epoch": trajectory.attempt + 1,
                "input": trajectory.instruction,
                "target": "",
                "messages": [_written(message) for message in messages],
                "scores": {} if trajectory.success is None else {"success": {"value": "CI"[not trajectory.success]}},
                "metadata": {"trajectory_id": trajectory.trajectory_id, "score": trajectory.score},
            }
        ],
    }


def _written(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of OpenAI's form as Inspect has it."""
    content = message["content"]
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    written = {"role": message["role"], "content": content}
    if message["role"] == "tool":
        written |= {"tool_call_id": message.get("tool_call_id"), "function": message.get("name")}
    if "tool_calls" in message:
        written["tool_calls"] = [_written_call(call) for call in message["tool_calls"]]
    return written


def _written_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    written = {"id": call["id"], "function": function["name"], "type": "function"}
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError) as error:
        return {**written, "arguments": {}, "parse_error": str(error)}
    return {**written, "arguments": arguments if isinstance(arguments, dict) else {"value": arguments}}
