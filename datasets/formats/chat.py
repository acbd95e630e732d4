"""OpenAI chat messages as JSON lines: `{"messages": […]}`, with tool calls; what tuning services and gateways log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flywheel.datasets.formats.images import data_url, image_in
from flywheel.datasets.formats.records import ImportedTurn, ReadContext, Run, called, episode, explain, verbatim
from flywheel.errors import RecordError
from flywheel.trajectory import Image, Split, Step, Trajectory

NAME = "chat"


class _Lenient(BaseModel):
    """Providers add fields of their own."""

    model_config = ConfigDict(extra="allow")


class _Function(_Lenient):
    name: str
    arguments: str | dict[str, Any] = ""


class _Call(_Lenient):
    function: _Function


class _Address(_Lenient):
    url: str


class _Part(_Lenient):
    type: str
    text: str | None = None
    image_url: _Address | None = None


class _Message(_Lenient):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    reasoning_content: str | None = None
    weight: float | None = None


class Conversation(_Lenient):
    """What tuning services and gateways log of one run."""

    messages: list[_Message]
    model: str = "unknown"
    success: bool | None = None
    score: Any = None


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One conversation: every assistant message is a turn; `success` and `score` are read where they stand."""
    try:
        conversation = Conversation.model_validate(record)
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    yield episode(NAME, run_of(conversation, record, source), split)


def run_of(conversation: Conversation, record: Any, source: ReadContext) -> Run:
    """The turns of a conversation; what was said between two of them is the observation."""
    turns: list[ImportedTurn] = []
    images: list[Image] = []
    waiting, replies, screenshot = list[str](), list[str](), None
    instruction: str | None = None
    for message in conversation.messages:
        text, pictures, whole = _content(message, source)
        if message.role == "user" and instruction is None:
            instruction = text
        if message.role != "assistant":
            waiting.append(text)
            replies.append(text)
            images += pictures
            screenshot = pictures[-1].sha256 if pictures else screenshot
            continue
        calls = [called(call.function.name, call.function.arguments) for call in message.tool_calls or []]
        thoughts = [message.reasoning_content or "", text if calls else ""]
        turns.append(
            ImportedTurn(
                observation="\n\n".join(waiting),
                action="\n".join(calls) or text,
                feedback="\n".join(replies) if turns else "",
                thought="\n".join(part for part in thoughts if part),
                trainable=whole and message.weight != 0,
                screenshot=screenshot,
            )
        )
        waiting, replies, screenshot = [], [], None
    return Run(
        instruction or "",
        turns,
        conversation.model,
        "1",
        record,
        final_observation="\n\n".join(waiting),
        success=conversation.success,
        score=source.number("score", conversation.score, most=1.0),
        images=tuple(images),
    )


def _content(message: _Message, source: ReadContext) -> tuple[str, list[Image], bool]:
    """(text, images, was everything read)."""
    if not isinstance(message.content, list):
        return message.content or "", [], True
    texts, pictures, whole = [], [], True
    for part in message.content:
        if part.text is not None:
            texts.append(part.text)
        if part.image_url is not None:
            picture = source.image(partial(image_in, part.image_url.url))
            if isinstance(picture, Image):
                pictures.append(picture)
            else:
                texts.append(picture)
                whole = False
    return "\n".join(texts), pictures, whole


def write(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """A conversation: the instruction, then what was seen and what was done, in turns."""
    if (original := verbatim(trajectory, NAME)) is not None:
        return dict(original)
    return {
        "messages": [{"role": "system", "content": trajectory.instruction}, *messages_of(trajectory.steps, images)],
        "model": trajectory.policy_id,
        "success": trajectory.success,
        "score": trajectory.score,
        "trajectory_id": trajectory.trajectory_id,
    }


def messages_of(steps: tuple[Step, ...], images: Mapping[str, Image]) -> list[dict[str, Any]]:
    """User and assistant messages of some steps; `weight` 0 marks what must not be learned."""
    messages: list[dict[str, Any]] = []
    for step in steps:
        seen: Any = step.observation
        if step.screenshot is not None:
            picture = {"type": "image_url", "image_url": {"url": data_url(images[step.screenshot])}}
            seen = [{"type": "text", "text": step.observation}, picture]
        messages.append({"role": "user", "content": seen})
        done: dict[str, Any] = {"role": "assistant", "content": step.action}
        if step.thought:
            done["reasoning_content"] = step.thought
        messages.append(done if step.trainable else {**done, "weight": 0})
    return messages
