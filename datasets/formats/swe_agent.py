"""SWE-agent's `.traj` files: `{"trajectory": [{action, observation, thought, …}], "info": …, "history": …}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, ValidationError

from flywheel.datasets.formats.chat_messages import ChatMessage, Lenient, read_messages
from flywheel.datasets.formats.records import ReadContext, Run, episode, explain, verbatim
from flywheel.datasets.formats.turns import ImportedTurn
from flywheel.errors import RecordError
from flywheel.messages import Image, Message
from flywheel.trajectory import Split, Trajectory
from flywheel.unknowns import known_sum

NAME = "swe-agent"


class _Turn(Lenient):
    action: str
    observation: str | None = None
    thought: str | None = None
    response: str | None = None
    state: Any = None
    query: Any = None
    execution_time: Any = None


class _Spent(Lenient):
    tokens_sent: Any = None
    tokens_received: Any = None
    instance_cost: Any = None
    api_calls: Any = None


class _Info(Lenient):
    exit_status: str | None = None
    submission: Any = None
    model_stats: _Spent = _Spent()


class _Entry(ChatMessage):
    is_demo: bool | None = None
    agent: str | None = None


class _Traj(Lenient):
    trajectory: list[_Turn]
    info: _Info = _Info()
    history: list[_Entry] = Field(default_factory=list)
    environment: str | None = None


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One run. A submission says nothing about whether it is right: success stays unknown. The task is what the user
    asked for first, demonstrations apart."""
    try:
        document = _Traj.model_validate(record)
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    source.count_fields(document)
    opening = list[Message]()
    instruction, images = "", list[Image]()
    for entry in document.history:
        if entry.role == "assistant" and not entry.is_demo:
            break
        for read in read_messages(entry, source):
            opening.append(read.message)
            images += read.images
            if entry.role == "user" and not entry.is_demo and not instruction:
                instruction = read.message.content
    turns, inputs = list[ImportedTurn](), tuple(opening)
    for turn in document.trajectory:
        answer = Message("assistant", turn.action.rstrip("\n"), reasoning=turn.thought or None)
        seconds = source.number("execution_time", turn.execution_time) or 0.0
        turns.append(ImportedTurn(inputs, answer, seconds=seconds))
        inputs = (Message("user", turn.observation),) if turn.observation else ()
    spent = document.info.model_stats
    counts = [source.count(name, getattr(spent, name)) for name in ("tokens_sent", "tokens_received")]
    run = Run(
        instruction,
        turns,
        NAME,
        str(document.environment or "1"),
        record,
        inputs,
        system=next((message.content for message in opening if message.role == "system"), None),
        tokens=known_sum(counts),
        cost=source.number("instance_cost", spent.instance_cost),
        error=document.info.exit_status or "",
        images=tuple(images),
    )
    yield episode(NAME, run, split)


def write(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """What SWE-agent's inspector shows; observations follow the action that they answer."""
    if (original := verbatim(trajectory, NAME)) is not None:
        return dict(original)
    after = [*(step.observation for step in trajectory.steps[1:]), trajectory.final_observation]
    return {
        "environment": trajectory.environment,
        "trajectory": [
            {
                "action": step.action,
                "observation": seen,
                "response": "\n".join(part for part in (step.thought, step.action) if part),
                "thought": step.thought,
                "execution_time": step.seconds,
                "state": {"location": step.location},
            }
            for step, seen in zip(trajectory.steps, after, strict=True)
        ],
        "history": [
            {"role": "system", "content": trajectory.instruction},
            *({"role": "user", "content": step.observation} for step in trajectory.steps[:1]),
        ],
        "info": {"exit_status": str(trajectory.stop_reason), "submission": None},
    }
