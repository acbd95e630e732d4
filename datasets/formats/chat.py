"""OpenAI chat messages as JSON lines: `{"messages": […]}`, with tool calls; what tuning services and gateways log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, Field, ValidationError

from flywheel.conversation import closing_of, inputs_of, opening_of, output_of
from flywheel.datasets.formats.chat_messages import ChatMessage, Lenient, read_messages, tools_of
from flywheel.datasets.formats.images import with_images
from flywheel.datasets.formats.records import ReadContext, Run, episode, explain, verbatim
from flywheel.datasets.formats.turns import conversation_of
from flywheel.errors import RecordError
from flywheel.messages import Image, Message, openai_message
from flywheel.trajectory import Split, Step, Trajectory
from flywheel.unknowns import known_sum

NAME = "chat"


class _Usage(Lenient):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    cost: Any = None


class _Log(Lenient):
    """What tuning services and gateways log of one run. `system` stands apart in Anthropic's form,
    and tau-bench says `traj`."""

    messages: list[ChatMessage] = Field(validation_alias=AliasChoices("messages", "traj"))
    system: Any = None
    tools: Any = None
    functions: Any = None
    model: str = "unknown"
    success: bool | None = None
    score: Any = None
    reward: Any = None
    usage: _Usage | None = None
    trajectory_id: str | None = None


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One conversation: every assistant message is a turn; `success`, `score` and `reward` are read where they are."""
    try:
        log = _Log.model_validate(record)
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    source.count_fields(log)
    prompts = [] if log.system is None else [ChatMessage(role="system", content=log.system)]
    conversation = conversation_of(
        message for raw in (*prompts, *log.messages) for message in read_messages(raw, source)
    )
    usage = log.usage or _Usage()
    counts = [source.count(f"usage.{name}", getattr(usage, name)) for name in ("prompt_tokens", "completion_tokens")]
    total = source.count("usage.total_tokens", usage.total_tokens)
    run = Run(
        conversation.instruction,
        conversation.turns,
        log.model,
        "1",
        record,
        conversation.rest,
        system=conversation.system,
        tools=tools_of(log.tools, log.functions),
        success=log.success,
        score=source.number("score", log.score, most=1.0),
        reward=source.number("reward", log.reward, least=-math.inf),
        tokens=total if total is not None else known_sum(counts),
        cost=source.number("usage.cost", usage.cost),
        images=conversation.images,
    )
    yield episode(NAME, run, split)


def write(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """The whole conversation: what was said and what was answered, tools included."""
    if (original := verbatim(trajectory, NAME)) is not None:
        return dict(original)
    messages = [*opening(trajectory, images), *messages_of(trajectory.steps, images), *closing(trajectory, images)]
    return {
        "messages": messages,
        **offered(trajectory),
        "model": trajectory.policy_id,
        "success": trajectory.success,
        "score": trajectory.score,
        "trajectory_id": trajectory.trajectory_id,
    }


def opening(trajectory: Trajectory, images: Mapping[str, Image]) -> list[dict[str, Any]]:
    """What stands before the first step."""
    return [_written(message, images) for message in opening_of(trajectory)]


def closing(trajectory: Trajectory, images: Mapping[str, Image]) -> list[dict[str, Any]]:
    """What was said after the last answer."""
    return [_written(message, images) for message in closing_of(trajectory)]


def offered(trajectory: Trajectory) -> dict[str, Any]:
    """The key `tools`, where there were some."""
    return {} if trajectory.tools is None else {"tools": json.loads(trajectory.tools)}


def messages_of(steps: Sequence[Step], images: Mapping[str, Image]) -> list[dict[str, Any]]:
    """The messages of some steps in OpenAI's form; `weight` 0 marks what must not be learned."""
    messages: list[dict[str, Any]] = []
    for step in steps:
        inputs = [_written(message, images) for message in inputs_of(step)]
        if step.screenshot is not None and step.inputs is None:
            (picture,) = with_images([{"type": "image", "sha256": step.screenshot}], images)
            inputs[-1]["content"] = [{"type": "text", "text": inputs[-1]["content"]}, picture]
        answer = _written(output_of(step), images)
        messages += [*inputs, answer if step.trainable else {**answer, "weight": 0}]
    return messages


def _written(message: Message, images: Mapping[str, Image]) -> dict[str, Any]:
    return openai_message(message, with_images(json.loads(message.parts), images) if message.parts else None)
