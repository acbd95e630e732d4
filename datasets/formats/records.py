"""From a record of another tool to a trajectory: what every reader shares."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from flywheel.datasets.formats.images import UnreadableImageError
from flywheel.datasets.formats.turns import ImportedTurn
from flywheel.datasets.lake.provenance import IMPORTED
from flywheel.errors import RecordError
from flywheel.messages import Image, Message, action_of, text_of_inputs, thought_of
from flywheel.trajectory import BUDGET_STOPS, Split, Step, StopReason, Task, Trajectory, digest
from flywheel.unknowns import known_sum


@dataclass(frozen=True, slots=True)
class ReadContext:
    """Where a record stands, for its reader: the folder of its images, the run whose sub-agent's it is, and a count of
    what was not understood."""

    folder: Path = Path()
    parent: str | None = None
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

    def count_fields(self, record: BaseModel, place: str = "") -> None:
        """Count the fields of a record, and of the records in it, that its reader does not know."""
        for name in record.model_extra or ():
            self.count_unread(f"{place}{name}")
        for name in type(record).model_fields:
            value = getattr(record, name)
            several = isinstance(value, list)
            for inner in value if several else [value]:
                if isinstance(inner, BaseModel):
                    self.count_fields(inner, f"{place}{name}{'[]' if several else ''}.")

    def count(self, name: str, value: Any) -> int | None:
        """A count of tokens; None where it is none, which is counted as unread unless it is absent."""
        if value is None:
            return None
        try:
            number = -1 if isinstance(value, bool) else int(value)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if 0 <= number < 2**31:
            return number
        self.count_unread(f"{name}: no count of tokens")
        return None

    def number(self, name: str, value: Any, most: float = math.inf, *, least: float = 0.0) -> float | None:
        """A number from `least` to `most`; None where it is none, which is counted as unread unless it is absent."""
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if least <= number <= most and math.isfinite(number):
            return number
        self.count_unread(f"{name}: not a number from {least:g} to {most:g}")
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """A whole record. What it does not say is None; `verbatim` is kept as it stood.

    `rest`: what was said after the last answer. `tools`: JSON in OpenAI's form. `parent`: whose sub-agent's run it is.
    """

    instruction: str
    turns: Sequence[ImportedTurn]
    agent: str
    version: str
    verbatim: Any
    rest: tuple[Message, ...] = ()
    system: str | None = None
    tools: str | None = None
    success: bool | None = None
    score: float | None = None
    reward: float | None = None
    tokens: int | None = None
    cost: float | None = None
    stop_reason: StopReason | None = None
    error: str = ""
    started_at: float = 0.0
    images: tuple[Image, ...] = ()
    parent: str | None = None


def episode(format: str, run: Run, split: Split) -> Trajectory:
    """The trajectory of a record. Its id is a digest of the whole record: a second import brings nothing new."""
    if not run.turns:
        raise RecordError("the agent never acted")
    task = Task(f"{IMPORTED}/{format}", "{}", split, int(digest(run.instruction), 16) >> 1, run.instruction)
    policy_id = policy_of(run.agent, run.version)
    steps = tuple(_step(index, turn, run, policy_id) for index, turn in enumerate(run.turns))
    return Trajectory(
        trajectory_id=identity_of(format, run.verbatim),
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
        stop_reason=run.stop_reason or _stop_reason(run),
        success=run.success,
        score=run.score,
        total_reward=run.reward,
        length=len(steps),
        final_observation=text_of_inputs(run.rest),
        final_feedback="",
        final_state_key="",
        error=run.error,
        parent_policy_id="",
        config_digest="",
        started_at=run.started_at,
        extra=compact({format: run.verbatim}),
        tokens=known_sum(count for turn in run.turns for count in _counts(turn)) if run.tokens is None else run.tokens,
        cost=known_sum(turn.cost for turn in run.turns) if run.cost is None else run.cost,
        system=run.system,
        tools=run.tools,
        final_inputs=run.rest,
        parent_trajectory_id=run.parent,
        steps=steps,
        images=run.images,
    )


def _step(index: int, turn: ImportedTurn, run: Run, policy_id: str) -> Step:
    is_last = index == len(run.turns) - 1
    return Step(
        index=index,
        observation=text_of_inputs(turn.inputs),
        feedback="",
        document="",
        location="",
        state_key="",
        valid_actions=None,
        thought=thought_of(turn.output),
        subgoal="",
        new_subgoal=False,
        action=action_of(turn.output),
        reward=None if run.reward is None else run.reward * is_last,
        progress=None,
        terminated=is_last and run.success is not None,
        truncated=is_last and run.stop_reason in BUDGET_STOPS and run.success is None,
        policy_id=policy_of(turn.policy, run.version) if turn.policy else policy_id,
        policy_version=run.version,
        trainable=turn.trainable,
        prompt_tokens=turn.prompt_tokens,
        completion_tokens=turn.completion_tokens,
        logprobs=turn.logprobs,
        seconds=turn.seconds,
        screenshot=turn.screenshot,
        cost=turn.cost,
        inputs=turn.inputs,
        output=turn.output,
    )


def identity_of(format: str, verbatim: Any) -> str:
    """The id of the trajectory that a record becomes."""
    return digest(IMPORTED, format, verbatim, size=16)


def policy_of(agent: str, version: str) -> str:
    """Who acted in a record, as a policy's id."""
    return f"{agent}@{version}"[:64]


def _counts(turn: ImportedTurn) -> tuple[int | None, int | None]:
    return turn.prompt_tokens, turn.completion_tokens


def _stop_reason(run: Run) -> StopReason:
    if run.success is None:
        return StopReason.UNKNOWN
    return StopReason.SUCCESS if run.success else StopReason.FAILURE


def seconds_of(timestamp: str | None, source: ReadContext) -> float:
    """Seconds since 1970 of an ISO 8601 time; 0 where there is none, and reported for what is no time."""
    if not timestamp:
        return 0.0
    try:
        return max(0.0, datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        source.count_unread("timestamp: no ISO 8601 time")
        return 0.0


def verbatim(trajectory: Trajectory, format: str) -> Any:
    """The record that a trajectory was imported from, if it was of this format; else None."""
    kept = json.loads(trajectory.extra) if trajectory.extra else None
    return kept.get(format) if isinstance(kept, dict) else None


MAY_BE_ABSENT = frozenset(
    name for kind in (Trajectory, Step) for name, hint in get_type_hints(kind).items() if NoneType in get_args(hint)
)
"""Fields of the data contract that may be None."""


def compact(value: Any) -> str:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def written_json(value: Any) -> str:
    """JSON with the fields in their order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def explain(error: ValidationError) -> str:
    """Where a record breaks its format, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    return f"{where}: {message}" if where else message
