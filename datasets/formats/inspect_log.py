"""Inspect's logs in their JSON form (`inspect log convert --to json`), a sample a run; no Inspect is needed to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flywheel.datasets.formats.chat import Conversation, messages_of, run_of
from flywheel.datasets.formats.records import ReadContext, compact, episode, explain, verbatim
from flywheel.errors import RecordError
from flywheel.trajectory import Image, Split, Trajectory

NAME = "inspect"
_CORRECT = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Score(_Lenient):
    value: Any = None


class _Sample(_Lenient):
    id: int | str
    epoch: int
    messages: list[dict[str, Any]] = []
    scores: dict[str, _Score] | None = None
    attachments: dict[str, str] = {}


class _Spec(_Lenient):
    task: str
    model: str


class _Part(_Lenient):
    eval: _Spec
    sample: _Sample


def split(document: Any) -> list[Any]:
    """A whole log as one record a sample, each with the log's header."""
    if not isinstance(document, dict) or not isinstance(document.get("samples"), list):
        return [document]
    header = {name: value for name, value in document.items() if name != "samples"}
    return [{**header, "sample": sample} for sample in document["samples"]]


def read(record: Any, fold: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One sample. It succeeded if every score says so; where one is missing or unreadable, success is unknown."""
    try:
        part = _Part.model_validate(record)
        messages = [_plain(message, part.sample.attachments, source) for message in part.sample.messages]
        conversation = Conversation.model_validate({"messages": messages, "model": part.eval.model})
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    values = [_value(score.value, source) for score in (part.sample.scores or {}).values()]
    known = [value for value in values if value is not None]
    if known and (len(known) == len(values) or min(known) < 1.0):
        conversation.success = min(known) >= 1.0
    conversation.score = min(known) if known else None
    yield episode(NAME, run_of(conversation, record, source), fold)


def _plain(message: dict[str, Any], attachments: Mapping[str, str], source: ReadContext) -> dict[str, Any]:
    """A message as OpenAI writes it: calls under `function`, reasoning apart, attachments in place."""
    content, thoughts = message.get("content"), []
    if isinstance(content, list):
        thoughts = [str(part.get("reasoning", "")) for part in content if _type(part) == "reasoning"]
        content = "\n".join(str(part.get("text", "")) for part in content if _type(part) == "text")
    if isinstance(content, str) and content.startswith("attachment://"):
        content = attachments.get(content.removeprefix("attachment://"), content)
    plain = {"role": message.get("role"), "content": content, "reasoning_content": "\n".join(thoughts) or None}
    tool_calls = message.get("tool_calls") or []
    if not isinstance(tool_calls, list) or not all(isinstance(call, dict) for call in tool_calls):
        source.count_unread("tool_calls: not a list of calls")
        return {**plain, "content": content or compact(tool_calls), "weight": 0}
    calls = [
        {"function": {"name": str(call.get("function")), "arguments": call.get("arguments") or {}}}
        for call in tool_calls
    ]
    return {**plain, "tool_calls": calls or None}


def _type(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


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
    messages = [{"role": "system", "content": trajectory.instruction}, *messages_of(trajectory.steps, {})]
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
                "messages": [{"role": message["role"], "content": message["content"]} for message in messages],
                "scores": {"success": {"value": "C" if trajectory.success else "I"}},
                "metadata": {"trajectory_id": trajectory.trajectory_id, "score": trajectory.score},
            }
        ],
    }
