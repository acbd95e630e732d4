"""The data contract: what one stage of the wheel hands to the next.

Every class is frozen; `flywheel.arrow` converts them to Arrow tables and back without loss. A trajectory never
changes once it is written; verdicts, routes and segments are appended beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from flywheel.column import Column
from flywheel.messages import Image, Message, action_of, text_of_inputs, thought_of

SCHEMA_VERSION = 6


class TrajectoryOrigin(StrEnum):
    """How a trajectory came into this lake. Set by the writer, never read from a document."""

    COLLECTED = "collected"
    """Played by this flywheel."""
    RECORDED = "recorded"
    """An agent's own run, whose calls went through this flywheel's gateway."""
    TRUSTED = "trusted"
    """Imported as a record of our own, on the importing user's word (`--trust`)."""
    IMPORTED = "imported"
    """Imported: what the record says of itself is a claim."""


OURS = frozenset({TrajectoryOrigin.COLLECTED, TrajectoryOrigin.RECORDED, TrajectoryOrigin.TRUSTED})
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


NAMED = "#"
"""Stands between an environment and the name of a task."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance, made from split and seed or named in a list. `parameters` is canonical JSON."""

    environment: str
    parameters: str
    split: Split
    seed: int
    instruction: str = ""
    name: str = ""
    """Its id in a list of tasks; empty: made from split and seed."""
    asked: str = ""
    """Digest of all that a named task asks for: with it, a corrected row is another task."""
    unit: str = ""
    """Named tasks of one unit never lie in two splits; empty: each is one."""
    family: str = ""
    """The kind of task, by which balance and slices go; empty: the environment under its parameters."""
    data: str = ""
    """Whatever else the environment is told, as JSON; empty for nothing."""

    @property
    def group(self) -> str:
        """What splits and statistics respect."""
        named = f"{self.environment}{NAMED}{self.unit or self.name}"
        return named if self.name else f"{self.environment}/{self.split}/{self.seed}"

    @property
    def task_id(self) -> str:
        named = f"{self.environment}{NAMED}{self.name}" if self.name else self.group
        return f"{named}@{digest(self.parameters, size=4)}{f'-{self.asked}' if self.asked else ''}"


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the agent: what it saw, what it did, what came of it."""

    index: Annotated[int, Column("0, 1, …")]
    observation: Annotated[
        str, Column("all that the agent saw before it acted: the text of inputs where there are some")
    ]
    feedback: Annotated[
        str, Column("what the environment answered to the action before; NULL at index 0", empty_is_null=True)
    ]
    document: Annotated[
        str,
        Column("a text that this observation opened (a manual page, a note); NULL for most steps", empty_is_null=True),
    ]
    location: Annotated[str, Column("name of the room, page or screen; NULL where there is none", empty_is_null=True)]
    state_key: Annotated[
        str,
        Column("equal for states that the environment holds for the same; NULL: it tells none", empty_is_null=True),
    ]
    valid_actions: Annotated[
        tuple[str, ...] | None, Column("the actions that the environment listed, or NULL where it lists none")
    ]
    thought: Annotated[str, Column("the agent's reasoning before it acted")]
    subgoal: Annotated[str, Column("the subgoal in force; empty for flat policies")]
    new_subgoal: Annotated[bool, Column("true where the planner named a subgoal before this step")]
    action: Annotated[str, Column("what the agent did; its tool calls as name and arguments, a line each")]
    reward: Annotated[float | None, Column("what it got for it; NULL where nobody said")]
    progress: Annotated[
        float | None, Column("the environment's progress after the action, 0 to 1; NULL where it tells none")
    ]
    terminated: Annotated[bool, Column("the task ended here")]
    truncated: Annotated[bool, Column("a limit ended it here")]
    policy_id: Annotated[str, Column("who decided this step")]
    policy_version: Annotated[str, Column("and how")]
    trainable: Annotated[
        bool, Column("false where the action was injected (a teacher's noise): context, never a target")
    ]
    prompt_tokens: Annotated[
        int | None, Column("tokens read for this decision, the planner's included; NULL where nobody counted")
    ]
    completion_tokens: Annotated[int | None, Column("tokens generated; NULL where nobody counted")]
    logprobs: Annotated[
        tuple[float, ...] | None,
        Column("of each completion token under the policy that acted, among those allowed, or NULL"),
    ]
    seconds: Annotated[float, Column("wall clock of decision and step")]
    screenshot: Annotated[str | None, Column("SHA-256 of the image that the agent saw, or NULL; see images")] = None
    teacher_action: Annotated[
        str | None,
        Column("what a teacher that watched would have done, or NULL; the target of training in place of the action"),
    ] = None
    audit: Annotated[str, Column("why an auditor had refused to believe that the task was done, just before")] = ""
    cost: Annotated[float | None, Column("of the decision, by the endpoint's prices; NULL where nobody knows")] = 0.0
    top_tokens: Annotated[
        tuple[tuple[str, ...], ...] | None, Column("the likeliest tokens at each token of the answer, or NULL")
    ] = None
    top_logprobs: Annotated[
        tuple[tuple[float, ...], ...] | None, Column("their log-probabilities, in the same shape")
    ] = None
    whole_view: Annotated[bool, Column("is observation a whole view, shown anew at each step?")] = False
    inputs: Annotated[
        tuple[Message, ...] | None,
        Column("the messages since the last decision: (role, content, parts, …); NULL where observation says it all"),
    ] = None
    output: Annotated[
        Message | None,
        Column("the agent's answer, with its reasoning and tool calls; NULL where action and thought say it all"),
    ] = None

    def __post_init__(self) -> None:
        """Raises `ValueError` where the columns say something else than the messages."""
        if self.inputs is not None and self.observation != text_of_inputs(self.inputs):
            raise ValueError(f"step {self.index}: the observation is not what its messages say")
        if self.output is not None and (self.action, self.thought) != (action_of(self.output), thought_of(self.output)):
            raise ValueError(f"step {self.index}: the action or the thought is not what its answer says")


@dataclass(frozen=True, slots=True)
class Segment:
    """The run of steps [start, end) that one subgoal spans."""

    trajectory_id: Annotated[str, Column("the episode")]
    index: Annotated[int, Column("0, 1, …")]
    start: Annotated[int, Column("first step")]
    end: Annotated[int, Column('the step after its last; quote it: "end"')]
    subgoal: Annotated[str, Column("what was achieved, ordered or done there; explore where nothing was")]
    completed: Annotated[bool, Column("false for what the episode left unfinished")]
    reward: Annotated[float, Column("sum over its steps")]
    source: Annotated[str, Column("milestones, lived, changes or chat, with its version")]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode. Its id is a hash of what determines it, so that a retry cannot store it twice."""

    trajectory_id: Annotated[str, Column("digest of task, policy, version, purpose and attempt")]
    environment: Annotated[str, Column("name of the environment")]
    parameters: Annotated[str, Column("the environment's settings, canonical JSON")]
    split: Annotated[Split, Column("train, dev or test")]
    seed: Annotated[int, Column("what the environment was reset with", "int64")]
    task_id: Annotated[str, Column("environment, split and seed, or its name in a list; with a digest of the rest")]
    task_group: Annotated[str, Column("tasks of one group never lie in two splits")]
    instruction: Annotated[str, Column("the task in words, as the agent was given it")]
    policy: Annotated[
        str,
        Column("expert, noisy_expert, random, chat, flat, hierarchical, tutored, human, recorded or imported"),
    ]
    policy_id: Annotated[str, Column("which policy exactly")]
    policy_version: Annotated[str, Column("how it acted: limits and decoding")]
    iteration: Annotated[int, Column("turn of the wheel that played it")]
    purpose: Annotated[str, Column("collect, self_play, evaluate, recorded or imported")]
    attempt: Annotated[
        int, Column("which try of this policy at this task: 0, 1, …; from 1000 on: again after broken infrastructure")
    ]
    stop_reason: Annotated[
        StopReason,
        Column("success, failure, step_limit and other limits, no_action, gave_up, malformed, infrastructure"),
    ]
    success: Annotated[
        bool | None, Column("the environment's claim, or what was reported, or NULL; verdicts say whether it holds")
    ]
    score: Annotated[float | None, Column("last progress, 0 to 1; NULL where nobody said")]
    total_reward: Annotated[float | None, Column("sum of the steps' rewards; NULL where nobody said")]
    length: Annotated[int, Column("number of steps")]
    final_observation: Annotated[str, Column("what was seen after the last step")]
    final_feedback: Annotated[str, Column("what the environment answered to the last action", empty_is_null=True)]
    final_state_key: Annotated[str, Column("digest of the last state", empty_is_null=True)]
    error: Annotated[str, Column("what broke, for infrastructure failures")]
    parent_policy_id: Annotated[str, Column("the champion in force when this was collected, or empty")]
    config_digest: Annotated[str, Column("digest of the settings")]
    started_at: Annotated[float, Column("when the episode began")]
    schema_version: Annotated[int, Column("version of the data contract")] = SCHEMA_VERSION
    extra: Annotated[str | None, Column("the record that it was imported from, JSON by format, or NULL")] = None
    tokens: Annotated[
        int | None,
        Column("read and generated for it, also for a last decision that led to no step; NULL: unknown", "int64"),
    ] = 0
    cost: Annotated[float | None, Column("of them, by the endpoint's prices; NULL: unknown")] = 0.0
    subject: Annotated[
        str | None, Column("whose data this is (a pseudonym), or NULL; see flywheel lake purge --subject")
    ] = None
    origin: Annotated[
        TrajectoryOrigin, Column("how it came here: collected, recorded, trusted or imported; set by the writer")
    ] = TrajectoryOrigin.COLLECTED
    origin_source: Annotated[
        str, Column("the file of an import, the session of a recorded run; empty for what was played here")
    ] = ""
    origin_by: Annotated[str, Column("the user who imported it, and on whose word it is trusted")] = ""
    claims: Annotated[
        str | None,
        Column("what an imported record of ours says of its own policy, purpose, iteration and attempt, JSON, or NULL"),
    ] = None
    system: Annotated[str | None, Column("the system prompt that the agent was given, or NULL")] = None
    tools: Annotated[str | None, Column("the tools that it was offered, JSON in OpenAI's form, or NULL")] = None
    final_inputs: Annotated[
        tuple[Message, ...] | None,
        Column("the messages after its last answer; NULL: final_observation says it all"),
    ] = None
    parent_trajectory_id: Annotated[str | None, Column("whose sub-agent's run or branch this is, or NULL")] = None
    task_name: Annotated[
        str, Column("the task's id in a list of tasks; NULL: it is made from split and seed", empty_is_null=True)
    ] = ""
    task_data: Annotated[
        str, Column("what else the task tells the environment, JSON; NULL: nothing", empty_is_null=True)
    ] = ""
    family: Annotated[
        str, Column("the kind of task; NULL: the environment under its parameters", empty_is_null=True)
    ] = ""
    steps: tuple[Step, ...] = ()
    images: tuple[Image, ...] = ()
    """What the steps' `screenshot` names. Written once with the trajectory; read with `Lake.images`."""

    def __post_init__(self) -> None:
        """Raises `ValueError` where the last observation says something else than the last messages."""
        if self.final_inputs is not None and self.final_observation != text_of_inputs(self.final_inputs):
            raise ValueError("the final observation is not what its messages say")

    @property
    def task(self) -> Task:
        """The task that it says it played."""
        return task_of({name: getattr(self, name) for name in TASK_COLUMNS})


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

    trajectory_id: Annotated[str, Column("the episode")]
    verifier: Annotated[str, Column("name")]
    version: Annotated[str, Column("of the verifier")]
    arguments: Annotated[str, Column("JSON")]
    completion: Annotated[float, Column("0 to 100")]
    integrity: Annotated[float, Column("0 to 1")]
    completion_threshold: Annotated[float, Column("what had to be reached")]
    integrity_threshold: Annotated[float, Column("what had to be reached")]
    passed: Annotated[bool, Column("completion and integrity reached their thresholds")]
    confidence: Annotated[float, Column("how sure the verifier is, 0 to 1; 0 where nothing could be shown either way")]
    items: Annotated[tuple[Item, ...], Column("the checklist: list of (name, points, fraction, evidence)")]
    raw: Annotated[str, Column("a judge's own answers, JSON")]
    created_at: Annotated[float, Column("when")] = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a trajectory goes, and why."""

    trajectory_id: Annotated[str, Column("the episode")]
    route: Annotated[RouteTo, Column("supervised, executor, continual, duplicate, held_out, quarantine")]
    verified: Annotated[bool, Column("every verifier passed")]
    reason: Annotated[str, Column("why")]
    source: Annotated[str, Column("what decided, with its version and pipeline; the newest decision is in force")]
    created_at: Annotated[float, Column("when")] = 0.0


TASK_COLUMNS = (
    "environment",
    "parameters",
    "split",
    "seed",
    "instruction",
    "task_id",
    "task_group",
    "task_name",
    "task_data",
    "family",
)
"""The columns of a trajectory that say which task it is."""


def task_of(row: Mapping[str, Any]) -> Task:
    """The task of a row that has `TASK_COLUMNS`."""
    name = row["task_name"] or ""
    unit = row["task_group"].partition(NAMED)[2]
    return Task(
        environment=row["environment"],
        parameters=row["parameters"],
        split=Split(row["split"]),
        seed=row["seed"],
        instruction=row["instruction"],
        name=name,
        asked=row["task_id"].rpartition("@")[2].partition("-")[2] if name else "",
        unit=unit if name and unit != name else "",
        family=row["family"] or "",
        data=row["task_data"] or "",
    )


def digest(*parts: object, size: int = 8) -> str:
    """Hex BLAKE2b of the parts as canonical JSON; `size` in bytes. The one hash behind every identity here."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def trajectory_id(task: Task, policy_id: str, policy_version: str, purpose: str, attempt: int) -> str:
    """Deterministic id: the same policy's same attempt at the same task is the same trajectory."""
    return digest("trajectory", task.task_id, policy_id, policy_version, purpose, attempt, size=16)
