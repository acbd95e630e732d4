"""The data contract: what one stage of the wheel hands to the next.

Every class is frozen; `flywheel.arrow` converts them to Arrow tables and back without loss. A trajectory never
changes once it is written; verdicts, routes and segments are appended beside it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

SCHEMA_VERSION = 5


class TrajectoryOrigin(StrEnum):
    """How a trajectory came into this lake. Set by the writer, never read from a document."""

    COLLECTED = "collected"
    """Played by this flywheel."""
    TRUSTED = "trusted"
    """Imported as a record of our own, on the word of whoever imported it (`--trust`)."""
    IMPORTED = "imported"
    """Imported: what the record says of itself is a claim."""


OURS = frozenset({TrajectoryOrigin.COLLECTED, TrajectoryOrigin.TRUSTED})
"""Origins that evaluation, the gate and statistics count, and whose policies' words may teach."""


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
    TOKEN_LIMIT = "token_limit"
    """The budget of tokens ran out: truncated."""
    TIME_LIMIT = "time_limit"
    """The budget of seconds ran out: truncated."""
    COST_LIMIT = "cost_limit"
    """The budget of money ran out: truncated."""
    NO_ACTION = "no_action"
    """The policy had nothing left to try: truncated."""
    GAVE_UP = "gave_up"
    """The policy stopped before the environment said that the task was over."""
    MALFORMED = "malformed"
    """The policy's answers could not be read, however often it was asked again."""
    UNKNOWN = "unknown"
    """An imported record that does not say."""
    INFRASTRUCTURE = "infrastructure"
    """The environment or its server broke. Neither success nor failure; out of training and statistics."""


BUDGET_STOPS = frozenset({StopReason.STEP_LIMIT, StopReason.TOKEN_LIMIT, StopReason.TIME_LIMIT, StopReason.COST_LIMIT})
"""Ends of a budget: the last step is truncated."""


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
    DUPLICATE = "duplicate"
    """Says what an earlier training episode says already: kept, not taught again."""
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
    switched: bool
    """Did the planner speak before this step? Segments as they were lived start where it did."""
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
    screenshot: str | None = None
    """SHA-256 of the image that the agent saw, one of the trajectory's `images`, or None."""
    label: str | None = None
    """What a teacher would have done here, where it watched: the target of training in place of `action`."""
    audit: str = ""
    """Why an auditor had refused to believe that the task was done, just before this decision."""
    cost: float = 0.0
    """What the decision cost, in the currency of the endpoint's prices."""
    top_tokens: tuple[tuple[str, ...], ...] | None = None
    """The likeliest tokens at each token of the answer, where an endpoint told them."""
    top_logprobs: tuple[tuple[float, ...], ...] | None = None
    """Their log-probabilities, in the same shape."""


@dataclass(frozen=True, slots=True)
class Image:
    """A screenshot, named by its content."""

    media_type: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


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
    extra: str | None = None
    """The record that this was imported from, JSON by format, or None."""
    tokens: int = 0
    """Tokens read and written for it, also for a last decision that led to no step."""
    cost: float = 0.0
    """What they cost, in the currency of the endpoint's prices."""
    subject: str | None = None
    """Whose data this is (a pseudonym), so that all of it can be deleted; None where it is nobody's."""
    origin: TrajectoryOrigin = TrajectoryOrigin.COLLECTED
    origin_source: str = ""
    """Where it came from: the file of an import; empty for what was played here (iteration and config digest say)."""
    origin_by: str = ""
    """The user who imported it, and on whose word it is trusted."""
    claims: str | None = None
    """What an imported record of ours says of its own provenance (policy, iteration, purpose, …), as JSON, or None."""
    steps: tuple[Step, ...] = ()
    images: tuple[Image, ...] = ()
    """What the steps' `screenshot` names. Written once with the trajectory; read with `Lake.images`."""

    @property
    def task(self) -> Task:
        """The task that it says it played."""
        return Task(self.environment, self.parameters, self.split, self.seed, self.instruction)


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
    """How sure the verifier is, 0 to 1: agreement of votes, or 0 where nothing could be shown either way."""
    items: tuple[Item, ...]
    raw: str
    """A judge's own words, as JSON."""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a trajectory goes, and why."""

    trajectory_id: str
    route: RouteTo
    verified: bool
    reason: str
    source: str
    """What decided, with its version and pipeline; the newest decision is in force."""
    created_at: float = 0.0


def digest(*parts: object, size: int = 8) -> str:
    """Hex BLAKE2b of the parts as canonical JSON; `size` in bytes. The one hash behind every identity here."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def trajectory_id(task: Task, policy_id: str, policy_version: str, purpose: str, attempt: int) -> str:
    """Deterministic id: the same policy's same attempt at the same task is the same trajectory."""
    return digest("trajectory", task.task_id, policy_id, policy_version, purpose, attempt, size=16)
