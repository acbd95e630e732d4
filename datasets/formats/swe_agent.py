"""SWE-agent's `.traj` files: `{"trajectory": [{action, observation, thought, …}], "info": …, "history": …}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flywheel.datasets.formats.records import ImportedTurn, ReadContext, Run, episode, explain, verbatim
from flywheel.errors import RecordError
from flywheel.trajectory import Image, Split, Trajectory

NAME = "swe-agent"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Turn(_Lenient):
    action: str
    observation: str | None = None
    thought: str | None = None
    response: str | None = None
    execution_time: Any = None


class _Info(_Lenient):
    exit_status: str | None = None


class _Message(_Lenient):
    role: str = ""
    content: Any = None


class _Traj(_Lenient):
    trajectory: list[_Turn]
    info: _Info = _Info()
    history: list[_Message] = []
    environment: str | None = None


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One run. A submission says nothing about whether it is right: success stays unknown."""
    try:
        document = _Traj.model_validate(record)
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    user_messages = (
        message.content for message in document.history if message.role == "user" and isinstance(message.content, str)
    )
    instruction = next(user_messages, "")
    turns, seen = [], instruction
    for number, turn in enumerate(document.trajectory):
        turns.append(
            ImportedTurn(
                observation=seen,
                action=turn.action.rstrip("\n"),
                feedback=seen if number else "",
                thought=turn.thought or "",
                seconds=source.number("execution_time", turn.execution_time) or 0.0,
            )
        )
        seen = turn.observation or ""
    status = document.info.exit_status or ""
    run = Run(instruction, turns, NAME, str(document.environment or "1"), record, seen, error=status)
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
