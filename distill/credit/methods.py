"""The methods by name, each a frozen group of arguments: an Arrow table of steps in, a table of credits out.

A new method is a class here with a line in `METHODS`, and the mathematics in a module of its own.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.config.root import explain
from flywheel.config.section import Section, Share
from flywheel.distill.credit.advantages import gae, length_adaptive, progress_gain, returns, shaped
from flywheel.distill.credit.groups import gigpo
from flywheel.distill.credit.hierarchical import Critics, Levels, hae, hae_without_critics, normalised
from flywheel.distill.credit.ragged import Runs
from flywheel.errors import ConfigError
from flywheel.filters.batch import Floats, Ints, codes
from flywheel.filters.segments import SOURCE as SOURCE_OF_CURATION

SOURCE = "credit/1"
FLAT, PLANNER, EXECUTOR, SWITCH = "flat", "planner", "executor", "switch"
COLUMNS = ("trajectory_id", "index", "task_id", "state_key", "reward", "progress", "terminated", "begins")
"""Of the steps, ordered by trajectory and index. `begins`: does a subgoal start here?"""


@dataclass(frozen=True)
class Episodes:
    """Steps as flat arrays. `values`: level → (values (T,), those of the final states (N,)), where it has a critic."""

    steps: pa.Table
    values: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)

    @cached_property
    def runs(self) -> Runs:
        owner = codes(self.steps["trajectory_id"])
        return Runs.of(np.append(True, owner[1:] != owner[:-1]))

    @cached_property
    def parts(self) -> Runs:
        begins_T = self.column("begins") > 0
        begins_T[self.runs.first_N] = True
        return Runs.of(begins_T)

    @cached_property
    def terminated_N(self) -> Floats:
        return self.column("terminated")[self.runs.last_N]

    @cached_property
    def group_N(self) -> Ints:
        return codes(self.steps["task_id"])[self.runs.first_N]

    @cached_property
    def state_T(self) -> Ints:
        """Equal numbers are equal states; a state without a key is equal to none."""
        keys = self.steps["state_key"]
        code_T, unknown = codes(keys), pc.equal(keys, "").to_numpy()
        return np.where(unknown, -1 - np.arange(len(code_T)), code_T)

    def column(self, name: str) -> Floats:
        return np.array(self.steps[name].cast(pa.float64()).to_numpy(), np.float64)

    def value(self, level: str) -> tuple[Floats, Floats]:
        """Values and final values under a level's critic, the latter 0 where the task ended; 0 without a critic."""
        runs = self.runs
        value_T, final_N = self.values.get(level, (np.zeros(runs.steps), np.zeros(len(runs))))
        return value_T, final_N * (1.0 - self.terminated_N)


@dataclass(frozen=True, slots=True)
class Level:
    """Credit of one level: where each decision fell, what it is worth, and the return behind it."""

    name: str
    place_M: Ints
    advantage_M: Floats
    return_M: Floats


class Method(Section):
    """Arguments of a method. Called with episodes it gives credit by level."""

    shaping: bool = Field(default=False, description="Add the gain in progress to the rewards (Ng et al. 1999).")
    gamma: Share = Field(default=1.0, description="Discount.")
    segments: str = Field(default=SOURCE_OF_CURATION, description="Whose segments: a source in view segmentations.")

    @property
    def compares(self) -> bool:
        """Do other trajectories of its task decide what a decision is worth?"""
        return False

    @abstractmethod
    def __call__(self, episodes: Episodes) -> list[Level]: ...

    def rewards(self, episodes: Episodes) -> Floats:
        reward_T = episodes.column("reward")
        if not self.shaping:
            return reward_T
        return shaped(reward_T, episodes.column("progress"), episodes.terminated_N, episodes.runs, self.gamma)


class Returns(Method):
    """Discounted returns; the advantage is their distance from the critic's value, or from 0."""

    def __call__(self, episodes: Episodes) -> list[Level]:
        value_T, final_N = episodes.value(FLAT)
        return_T = returns(self.rewards(episodes), episodes.runs, self.gamma, final_N)
        return [Level(FLAT, np.arange(episodes.runs.steps), return_T - value_T, return_T)]


class Gae(Method):
    """Generalised advantages; the critic's target is the whole return."""

    lam: Share | None = Field(default=None, description="λ; None: 1 − 1/(alpha × length).")
    alpha: float = Field(default=1.0, gt=0, description="How far credit travels under the length-adaptive λ.")
    low: Share = Field(default=0.5, description="The least λ of short episodes.")
    high: Share = Field(default=1.0, description="The greatest λ of long ones.")

    def lambdas(self, runs: Runs) -> Floats:
        if self.lam is not None:
            return np.full(len(runs), self.lam)
        return length_adaptive(runs.length_N, self.alpha, self.low, self.high)

    def __call__(self, episodes: Episodes) -> list[Level]:
        runs, reward_T = episodes.runs, self.rewards(episodes)
        value_T, final_N = episodes.value(FLAT)
        advantage_T = gae(reward_T, value_T, runs, self.gamma, self.lambdas(runs), final_N)
        return [Level(FLAT, np.arange(runs.steps), advantage_T, returns(reward_T, runs, self.gamma, final_N))]


class Hae(Gae):
    """Hierarchical advantages, normalised level by level; from groups of a task where there are no critics."""

    @property
    def compares(self) -> bool:
        return not self.critics

    critics: bool = Field(default=False, description="Compare with value heads rather than with the task's others.")

    def __call__(self, episodes: Episodes) -> list[Level]:
        runs, parts, reward_T = episodes.runs, episodes.parts, self.rewards(episodes)
        if not self.critics:
            levels = hae_without_critics(reward_T, runs, parts, episodes.group_N, self.gamma)
            return _levels(levels, parts)
        if not episodes.values:
            raise ConfigError(
                "hae with critics needs a student's value heads: distill with train.finetune.algorithm awr or ppo"
            )
        low_T, high_T, keep_T = (episodes.value(level)[0] for level in (EXECUTOR, PLANNER, SWITCH))
        critics = Critics(low_T, high_T[parts.first_N], keep_T, episodes.value(PLANNER)[1])
        lam_N = self.lambdas(runs)
        levels = hae(reward_T, runs, parts, critics, self.gamma, lam_N, lam_N)
        return [
            Level(level.name, level.place_M, normalised(level.advantage_M), level.return_M)
            for level in _levels(levels, parts)
        ]


class Gigpo(Method):
    """Episodes against their task's, steps against those from the same state."""

    weight: float = Field(default=1.0, ge=0, description="ω, of the steps' part.")
    scale: bool = Field(default=True, description="Divide by standard deviations.")

    @property
    def compares(self) -> bool:
        return True

    def __call__(self, episodes: Episodes) -> list[Level]:
        runs, reward_T = episodes.runs, self.rewards(episodes)
        return_T = returns(reward_T, runs, self.gamma, np.zeros(len(runs)))
        advantage_T = gigpo(reward_T, return_T, runs, episodes.group_N, episodes.state_T, self.weight, scale=self.scale)
        return [Level(FLAT, np.arange(runs.steps), advantage_T, return_T)]


class Progress(Method):
    """Gain in the chance of success: the critic's where there is one, else the environment's progress."""

    def __call__(self, episodes: Episodes) -> list[Level]:
        runs = episodes.runs
        if FLAT in episodes.values:
            value_T, final_N = episodes.values[FLAT]
            success_N = episodes.column("progress")[runs.last_N] >= 1
            ended_N = np.where(episodes.terminated_N > 0, success_N.astype(np.float64), final_N)
            chance_T, before_N = runs.next_T(value_T, ended_N), value_T[runs.first_N]
        else:
            chance_T, before_N = episodes.column("progress"), np.zeros(len(runs))
        return [Level(FLAT, np.arange(runs.steps), progress_gain(chance_T, before_N, runs), chance_T)]


METHODS: Mapping[str, type[Method]] = {
    "returns": Returns,
    "gae": Gae,
    "hae": Hae,
    "gigpo": Gigpo,
    "progress": Progress,
}


def make_method(name: str, arguments: Mapping[str, Any]) -> Method:
    """Raises `ConfigError` in one line for an unknown name or argument."""
    if name not in METHODS:
        raise ConfigError(f"unknown credit method '{name}'; known: {', '.join(METHODS)}")
    try:
        return METHODS[name].model_validate(dict(arguments))
    except ValidationError as error:
        raise ConfigError(f"credit method '{name}': {explain(error, METHODS[name])}") from None


def credit(name: str, method: Method, episodes: Episodes, source: str = SOURCE) -> pa.Table:
    """A row a decision and level, by the schema of `credits`."""
    index_T, ids = episodes.steps["index"], episodes.steps["trajectory_id"]
    tables = [
        pa.table(
            {
                "trajectory_id": ids.take(pa.array(level.place_M)),
                "index": index_T.take(pa.array(level.place_M)),
                "level": pa.repeat(pa.scalar(level.name), len(level.place_M)),
                "method": pa.repeat(pa.scalar(name), len(level.place_M)),
                "arguments": pa.repeat(pa.scalar(arguments_of(method)), len(level.place_M)),
                "advantage": level.advantage_M,
                "return": level.return_M,
                "source": pa.repeat(pa.scalar(source), len(level.place_M)),
            },
            schema=ARROW_SCHEMAS["credits"],
        )
        for level in method(episodes)
    ]
    return pa.concat_tables(tables)


def arguments_of(method: Method) -> str:
    """The one spelling of a method's arguments."""
    return json.dumps(method.model_dump(), sort_keys=True, separators=(",", ":"))


def _levels(levels: Levels, parts: Runs) -> list[Level]:
    every_T = np.arange(parts.steps)
    return [
        Level(EXECUTOR, every_T, levels.executor_T, levels.executor_return_T),
        Level(PLANNER, parts.first_N, levels.planner_K, levels.planner_return_K),
        Level(SWITCH, every_T, levels.switch_T, levels.switch_return_T),
    ]
