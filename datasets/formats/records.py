"""From a record of another tool to a trajectory: what every reader shares."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flywheel.datasets.formats.images import UnreadableImageError
from flywheel.datasets.lake.provenance import IMPORTED
from flywheel.errors import RecordError
from flywheel.trajectory import Image, Split, Step, StopReason, Task, Trajectory, digest


@dataclass(frozen=True, slots=True)
class ReadContext:
    """Where a record stands, for its reader: the folder of its images, and a count of what was not understood."""

    folder: Path = Path()
    unread: Counter[str] = field(default_factory=Counter)

    def count_unread(self, what: str) -> None:
        """Count something that the reader leaves out; it stays in the record that is kept verbatim."""
        self.unread[what] += 1

    def image(self, read: Callable[[], Image]) -> Image | str:
        """An image, or words that stand in its place where it cannot be read."""
        try:
            return read()
        except UnreadableImageError as error:
            self.count_unread(str(error))
            return f"[{error}]"

    def count(self, name: str, value: Any) -> int:
        """A count of tokens; 0 where it is none, which is counted as unread unless it is absent."""
        if value is None:
            return 0
        try:
            number = -1 if isinstance(value, bool) else int(value)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if 0 <= number < 2**31:
            return number
        self.count_unread(f"{name}: no count of tokens")
        return 0

    def number(self, name: str, value: Any, most: float = math.inf) -> float | None:
        """A number from 0 to `most`; None where it is none, which is counted as unread unless it is absent."""
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if 0 <= number <= most and math.isfinite(number):
            return number
        self.count_unread(f"{name}: not a number from 0 to {most:g}")
        return None


@dataclass(frozen=True, slots=True)
class ImportedTurn:
    """One turn of another tool's agent: what it received since its last turn, and what it did."""

    observation: str
    action: str
    feedback: str = ""
    thought: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[float, ...] | None = None
    seconds: float = 0.0
    trainable: bool = True
    screenshot: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A whole record. `success` is None where the record does not say; `verbatim` is kept as it stood."""

    instruction: str
    turns: Sequence[ImportedTurn]
    agent: str
    version: str
    verbatim: Any
    final_observation: str = ""
    success: bool | None = None
    score: float | None = None
    error: str = ""
    started_at: float = 0.0
    images: tuple[Image, ...] = ()


def episode(format: str, run: Run, split: Split) -> Trajectory:
    """The trajectory of a record. Its id is a digest of the whole record: a second import brings nothing new."""
    if not run.turns:
        raise RecordError("the agent never acted")
    task = Task(f"{IMPORTED}/{format}", "{}", split, int(digest(run.instruction), 16) >> 1, run.instruction)
    identity = digest(IMPORTED, format, run.verbatim, size=16)
    success = bool(run.success)
    policy_id = f"{run.agent}@{run.version}"[:64]
    last = len(run.turns) - 1
    steps = tuple(
        Step(
            index=index,
            observation=turn.observation,
            feedback=turn.feedback,
            document="",
            location="",
            state_key="",
            valid_actions=None,
            thought=turn.thought,
            subgoal="",
            new_subgoal=False,
            action=turn.action,
            reward=float(success and index == last),
            progress=float(success and index == last),
            terminated=index == last and run.success is not None,
            truncated=False,
            policy_id=policy_id,
            policy_version=run.version,
            trainable=turn.trainable,
            prompt_tokens=turn.prompt_tokens,
            completion_tokens=turn.completion_tokens,
            logprobs=turn.logprobs,
            seconds=turn.seconds,
            screenshot=turn.screenshot,
        )
        for index, turn in enumerate(run.turns)
    )
    return Trajectory(
        trajectory_id=identity,
        environment=task.environment,
        parameters=task.parameters,
        split=split,
        seed=task.seed,
        task_id=task.task_id,
        task_group=task.group,
        instruction=run.instruction,
        policy=IMPORTED,
        policy_id=policy_id,
        policy_version=run.version,
        iteration=0,
        purpose=IMPORTED,
        attempt=0,
        stop_reason=_stop_reason(run),
        success=success,
        score=run.score if run.score is not None else float(success),
        total_reward=float(success),
        length=len(steps),
        final_observation=run.final_observation,
        final_feedback=run.final_observation,
        final_state_key="",
        error=run.error,
        parent_policy_id="",
        config_digest="",
        started_at=run.started_at,
        extra=compact({format: run.verbatim}),
        steps=steps,
        images=run.images,
    )


def _stop_reason(run: Run) -> StopReason:
    if run.success is None:
        return StopReason.UNKNOWN
    return StopReason.SUCCESS if run.success else StopReason.FAILURE


def verbatim(trajectory: Trajectory, format: str) -> Any:
    """The record that a trajectory was imported from, if it was of this format; else None."""
    kept = json.loads(trajectory.extra) if trajectory.extra else None
    return kept.get(format) if isinstance(kept, dict) else None


def compact(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def called(name: str, arguments: Any) -> str:
    """A tool call as one line of text: its name and its arguments as JSON."""
    return f"{name} {arguments if isinstance(arguments, str) else compact(arguments)}"


def explain(error: ValidationError) -> str:
    """Where a record breaks its format, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    return f"{where}: {message}" if where else message
