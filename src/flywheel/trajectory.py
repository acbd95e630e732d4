"""The data contract: what one stage of the wheel hands to the next.

Every class is frozen. `ARROW_SCHEMAS` holds one Arrow schema a table and `to_arrow` / `from_arrow` convert both
ways without loss. A trajectory never changes once it is written; verdicts, routes and segments are appended beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TypeVar

import pyarrow as pa

SCHEMA_VERSION = 1

_T = TypeVar("_T")


class Split(StrEnum):
    """Which side of the wall a task lies on. A task belongs to one split for ever."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


class StopReason(StrEnum):
    """Why an episode ended."""

    SUCCESS = "success"
    """The environment says that the task is solved."""
    FAILURE = "failure"
    """The environment says that the task can no longer be solved."""
    STEP_LIMIT = "step_limit"
    """The step budget ran out: truncated, not terminated."""
    NO_ACTION = "no_action"
    """The policy had nothing left to try: truncated."""
    INFRASTRUCTURE = "infrastructure"
    """The environment or its server broke. Neither success nor failure; out of training and statistics."""


class RouteTo(StrEnum):
    """Where a curated trajectory goes. Nothing is thrown away."""

    SUPERVISED = "supervised"
    """Verified: supervised data for planner, executor and flat students."""
    EXECUTOR = "executor"
    """Not verified, but holds completed segments: executor data only."""
    CONTINUAL = "continual"
    """Not verified and nothing completed: kept for continual training and analysis."""
    HELD_OUT = "held_out"
    """A dev or test episode: statistics only, never training."""
    QUARANTINE = "quarantine"
    """Infrastructure failure, or evidence that contradicts the record."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance. `parameters` is canonical JSON; `group` is the unit that splits and statistics respect."""

    environment: str
    parameters: str
    split: Split
    seed: int
    instruction: str = ""

    @property
    def group(self) -> str:
        return f"{self.environment}/{self.split}/{self.seed}"

    @property
    def task_id(self) -> str:
        return f"{self.group}@{digest(self.parameters, size=4)}"


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the agent: what it saw, what it did, what came of it."""

    index: int
    observation: str
    """All that the agent could see before it acted."""
    event: str
    """What the environment answered to the action before; empty at index 0."""
    note: str
    """A document that this observation opened (a recipe, a manual page); empty for most steps."""
    place: str
    """Name of the room, page or screen; empty where the environment has none."""
    state_key: str
    """Equal keys mean states that the environment holds for the same."""
    valid_actions: tuple[str, ...] | None
    """The actions the environment listed, or None where it lists none."""
    thought: str
    subgoal: str
    """The subgoal in force; empty for flat policies."""
    action: str
    reward: float
    progress: float
    """Progress in [0, 1] after the action, as the environment reports it."""
    terminated: bool
    truncated: bool
    policy_id: str
    policy_version: str
    trainable: bool
    """False where the action was injected (noise of a teacher): context, never a target."""
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[float, ...] | None
    """Log-probability of each completion token under the policy that acted, or None."""
    seconds: float
    """Wall-clock seconds that the decision and the environment's answer took."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The run of steps [start, end) that one subgoal spans."""

    trajectory_id: str
    index: int
    start: int
    end: int
    subgoal: str
    completed: bool
    reward: float
    source: str
    """Name and version of what drew the segment."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode. Its id is a hash of what determines it, so that a retry cannot store it twice."""

    trajectory_id: str
    environment: str
    parameters: str
    split: Split
    seed: int
    task_id: str
    task_group: str
    instruction: str
    policy: str
    """Role of the policy as people ask for it: `expert`, `noisy_expert`, `flat`, `hierarchical`, …"""
    policy_id: str
    policy_version: str
    iteration: int
    purpose: str
    """`collect` or `evaluate`."""
    attempt: int
    """Which try of this policy at this task; a new attempt is a new trajectory."""
    stop_reason: StopReason
    success: bool
    """The environment's own claim. Verdicts say whether it holds."""
    score: float
    total_reward: float
    length: int
    final_observation: str
    final_event: str
    final_state_key: str
    error: str
    """What broke, for infrastructure failures."""
    parent_policy_id: str
    """Lineage: the champion in force when this was collected, or empty."""
    config_digest: str
    started_at: float
    """Seconds since the epoch, UTC."""
    schema_version: int = SCHEMA_VERSION
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a checklist with what proves it."""

    name: str
    points: float
    fraction: float
    evidence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one verifier says of one trajectory: completion A in [0, 100], integrity B in [0, 1]."""

    trajectory_id: str
    verifier: str
    version: str
    arguments: str
    completion: float
    integrity: float
    completion_threshold: float
    integrity_threshold: float
    passed: bool
    confidence: float
    items: tuple[Item, ...]
    raw: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where a trajectory goes, and why."""

    trajectory_id: str
    route: RouteTo
    verified: bool
    reason: str
    source: str


_STEP = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("index", pa.int32()),
        ("observation", pa.string()),
        ("event", pa.string()),
        ("note", pa.string()),
        ("place", pa.string()),
        ("state_key", pa.string()),
        ("valid_actions", pa.list_(pa.string())),
        ("thought", pa.string()),
        ("subgoal", pa.string()),
        ("action", pa.string()),
        ("reward", pa.float64()),
        ("progress", pa.float64()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        ("policy_id", pa.string()),
        ("policy_version", pa.string()),
        ("trainable", pa.bool_()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("logprobs", pa.list_(pa.float32())),
        ("seconds", pa.float64()),
    ]
)
_TRAJECTORY = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("environment", pa.string()),
        ("parameters", pa.string()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("task_id", pa.string()),
        ("task_group", pa.string()),
        ("instruction", pa.string()),
        ("policy", pa.string()),
        ("policy_id", pa.string()),
        ("policy_version", pa.string()),
        ("iteration", pa.int32()),
        ("purpose", pa.string()),
        ("attempt", pa.int32()),
        ("stop_reason", pa.string()),
        ("success", pa.bool_()),
        ("score", pa.float64()),
        ("total_reward", pa.float64()),
        ("length", pa.int32()),
        ("final_observation", pa.string()),
        ("final_event", pa.string()),
        ("final_state_key", pa.string()),
        ("error", pa.string()),
        ("parent_policy_id", pa.string()),
        ("config_digest", pa.string()),
        ("started_at", pa.float64()),
        ("schema_version", pa.int32()),
    ]
)
_ITEM = pa.struct(
    [("name", pa.string()), ("points", pa.float64()), ("fraction", pa.float64()), ("evidence", pa.string())]
)
_VERDICT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("verifier", pa.string()),
        ("version", pa.string()),
        ("arguments", pa.string()),
        ("completion", pa.float64()),
        ("integrity", pa.float64()),
        ("completion_threshold", pa.float64()),
        ("integrity_threshold", pa.float64()),
        ("passed", pa.bool_()),
        ("confidence", pa.float64()),
        ("items", pa.list_(_ITEM)),
        ("raw", pa.string()),
    ]
)
_ROUTE = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("route", pa.string()),
        ("verified", pa.bool_()),
        ("reason", pa.string()),
        ("source", pa.string()),
    ]
)
_SEGMENT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("index", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("subgoal", pa.string()),
        ("completed", pa.bool_()),
        ("reward", pa.float64()),
        ("source", pa.string()),
    ]
)
ARROW_SCHEMAS = {
    "trajectories": _TRAJECTORY,
    "steps": _STEP,
    "verdicts": _VERDICT,
    "routes": _ROUTE,
    "segments": _SEGMENT,
}


def digest(*parts: object, size: int = 8) -> str:
    """Hex BLAKE2b of the parts as canonical JSON; `size` in bytes. The one hash behind every identity here."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def trajectory_id(task: Task, policy_id: str, policy_version: str, purpose: str, attempt: int) -> str:
    """Deterministic id: the same policy's same attempt at the same task is the same trajectory."""
    return digest("trajectory", task.task_id, policy_id, policy_version, purpose, attempt, size=16)


def _columns(records: Sequence[object], schema: pa.Schema) -> pa.Table:
    return pa.table(
        [pa.array([getattr(record, field.name) for record in records], type=field.type) for field in schema],
        schema=schema,
    )


def trajectories_to_arrow(trajectories: Sequence[Trajectory]) -> tuple[pa.Table, pa.Table]:
    """(trajectories, steps) as flat tables; rows of `steps` follow the order of their trajectories."""
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    ids = [trajectory.trajectory_id for trajectory in trajectories for _ in trajectory.steps]
    step_table = _columns(steps, pa.schema(list(_STEP)[1:])).add_column(0, _STEP.field(0), [pa.array(ids, pa.string())])
    return _columns(trajectories, _TRAJECTORY), step_table


def trajectories_from_arrow(trajectories: pa.Table, steps: pa.Table) -> list[Trajectory]:
    """Inverse of `trajectories_to_arrow`; steps may come in any order."""
    by_id: dict[str, list[Step]] = defaultdict(list)
    names = [field.name for field in fields(Step)]
    for row in steps.select(["trajectory_id", *names]).to_pylist():
        owner = row.pop("trajectory_id")
        row["valid_actions"] = _tuple(row["valid_actions"])
        row["logprobs"] = _tuple(row["logprobs"])
        by_id[owner].append(Step(**row))
    return [
        replace(
            Trajectory(**{**row, "split": Split(row["split"]), "stop_reason": StopReason(row["stop_reason"])}),
            steps=tuple(sorted(by_id[row["trajectory_id"]], key=lambda step: step.index)),
        )
        for row in trajectories.select(_TRAJECTORY.names).to_pylist()
    ]


def verdicts_to_arrow(verdicts: Sequence[Verdict]) -> pa.Table:
    """One row a verdict; `items` is a list of structs."""
    plain = _columns(verdicts, pa.schema([field for field in _VERDICT if field.name != "items"]))
    items = pa.array([[_plain_item(item) for item in verdict.items] for verdict in verdicts], pa.list_(_ITEM))
    return plain.append_column(_VERDICT.field("items"), items).select(_VERDICT.names)


def verdicts_from_arrow(table: pa.Table) -> list[Verdict]:
    return [
        Verdict(**{**row, "items": tuple(Item(**item) for item in row["items"])})
        for row in table.select(_VERDICT.names).to_pylist()
    ]


def routes_to_arrow(routes: Sequence[Route]) -> pa.Table:
    return _columns(routes, _ROUTE)


def routes_from_arrow(table: pa.Table) -> list[Route]:
    return [Route(**{**row, "route": RouteTo(row["route"])}) for row in table.select(_ROUTE.names).to_pylist()]


def segments_to_arrow(segments: Sequence[Segment]) -> pa.Table:
    return _columns(segments, _SEGMENT)


def segments_from_arrow(table: pa.Table) -> list[Segment]:
    return [Segment(**row) for row in table.select(_SEGMENT.names).to_pylist()]


def _plain_item(item: Item) -> dict[str, object]:
    return {field.name: getattr(item, field.name) for field in fields(Item)}


def _tuple(values: Iterable[_T] | None) -> tuple[_T, ...] | None:
    return None if values is None else tuple(values)
