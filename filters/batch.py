"""Batches: some trajectories as columns, so that a check over all their steps is one vectorised expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flywheel.arrow import ARROW_SCHEMAS, steps_to_arrow, trajectories_from_arrow, trajectories_to_arrow
from flywheel.datasets.lake.derived import steps_with_text, trajectories_with_text
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import literal
from flywheel.trajectory import TASK_COLUMNS, Task, Trajectory, TrajectoryOrigin, task_of

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TrajectoryBatch:
    """N trajectories and their T steps: `starts_N1` holds where each one's steps begin, and T at its end."""

    trajectories: pa.Table
    steps: pa.Table
    starts_N1: Ints

    def __len__(self) -> int:
        return int(self.trajectories.num_rows)

    def rows(self, start: int, end: int) -> TrajectoryBatch:
        """The trajectories [start, end) as a batch of their own."""
        first, last = int(self.starts_N1[start]), int(self.starts_N1[end])
        starts = self.starts_N1[start : end + 1] - first
        return TrajectoryBatch(
            self.trajectories.slice(start, end - start), self.steps.slice(first, last - first), starts
        )

    @property
    def ids(self) -> list[str]:
        return self.texts("trajectory_id")

    def texts(self, column: str) -> list[str]:
        """A text column of the trajectories."""
        values: list[str] = self.trajectories[column].to_pylist()
        return values

    def numbers(self, column: str) -> Floats:
        """A number or truth of each trajectory as float64, (N,); NaN where nobody said."""
        return _floats(self.trajectories[column])

    def step_numbers(self, column: str) -> Floats:
        """A number or truth of each step as float64, (T,); NaN where nobody said."""
        return _floats(self.steps[column])

    def step_texts(self, column: str) -> pa.Array:
        """A column of the steps as one Arrow array of T values."""
        return self.steps[column].combine_chunks()

    @cached_property
    def owner_T(self) -> Ints:
        """Row of the trajectory that each step belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts_N1))

    @cached_property
    def lengths_N(self) -> Ints:
        return np.diff(self.starts_N1)

    @cached_property
    def first_T(self) -> Bools:
        """Is the step its trajectory's first?"""
        return self._at(self.starts_N1[:-1])

    @cached_property
    def last_T(self) -> Bools:
        """Is the step its trajectory's last?"""
        return self._at(self.starts_N1[1:] - 1)

    def _at(self, places_N: Ints) -> Bools:
        mask = np.zeros(self.steps.num_rows, np.bool_)
        mask[places_N[self.lengths_N > 0]] = True
        return mask

    @cached_property
    def state_T(self) -> Ints:
        """Number of the state that each step began in: equal numbers, equal keys. A state without a key is its own."""
        return self._states[: self.steps.num_rows]

    @cached_property
    def next_state_T(self) -> Ints:
        """Number of the state that each step led to."""
        following = np.roll(self.state_T, -1)
        following[self.last_T] = self._states[self.steps.num_rows :][self.lengths_N > 0]
        return following

    @cached_property
    def _states(self) -> Ints:
        keys = [*self.steps["state_key"].chunks, *self.trajectories["final_state_key"].chunks]
        column = pa.chunked_array(keys, pa.string())
        numbers, unknown = codes(column), np.asarray(pc.equal(column, "").to_numpy(), np.bool_)
        return np.where(unknown, -1 - np.arange(len(numbers)), numbers)

    @cached_property
    def action_T(self) -> Ints:
        """Number of each step's action: equal numbers, equal actions."""
        return codes(self.steps["action"])

    @cached_property
    def on_offer_T(self) -> Bools:
        """Was the action among those that the environment listed? True where it lists none."""
        offered = self.step_texts("valid_actions")
        values, parents = offered.flatten(), pc.list_parent_indices(offered).to_numpy()
        taken = pc.equal(values, self.step_texts("action").take(pa.array(parents)))
        on_offer = pc.is_null(offered).to_numpy(zero_copy_only=False)
        on_offer[parents[pc.fill_null(taken, False).to_numpy(zero_copy_only=False)]] = True
        mask: Bools = on_offer
        return mask

    @cached_property
    def tasks(self) -> list[Task]:
        """The task that each trajectory says it played."""
        return [task_of(row) for row in self.trajectories.select(TASK_COLUMNS).to_pylist()]

    @cached_property
    def objects(self) -> list[Trajectory]:
        """The same as objects, for what goes step by step anyway. Two rows may have one id: planted cheats do."""
        rows = pa.array(range(len(self))).cast(pa.string())
        steps = self.steps.set_column(0, "trajectory_id", rows.take(pa.array(self.owner_T)))
        trajectories = trajectories_from_arrow(self.trajectories.set_column(0, "trajectory_id", rows), steps)
        return [
            replace(trajectory, trajectory_id=name) for trajectory, name in zip(trajectories, self.ids, strict=True)
        ]

    def all_of(self, holds_T: Bools) -> Bools:
        """(N,): does it hold at every step? True for a trajectory without steps."""
        holds: Bools = self.sum_of(~holds_T) == 0
        return holds

    def sum_of(self, values_T: NDArray[np.generic]) -> Floats:
        """(N,): sums over each trajectory's steps."""
        weights = np.asarray(values_T, np.float64)
        return np.asarray(np.bincount(self.owner_T, weights=weights, minlength=len(self)), np.float64)


def codes(column: pa.ChunkedArray) -> Ints:
    """A number for each value, the same for equal values of this column."""
    encoded = column.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def batch_of(trajectories: Sequence[Trajectory]) -> TrajectoryBatch:
    steps = steps_with_text(pa.concat_tables([ARROW_SCHEMAS["steps"].empty_table(), *steps_to_arrow(trajectories)]))
    starts = np.concatenate([[0], np.cumsum([len(trajectory.steps) for trajectory in trajectories])]).astype(np.int64)
    return TrajectoryBatch(trajectories_with_text(trajectories_to_arrow(trajectories)), steps, starts)


def read_batch(lake: Lake, ids: Sequence[str]) -> TrajectoryBatch:
    """Trajectories of the lake, in the order of the ids."""
    trajectories, steps = lake.tables(ids)
    wanted = pa.array(ids, pa.string())
    owners = pc.index_in(steps["trajectory_id"], value_set=wanted).to_numpy()
    order = np.lexsort((steps["index"].to_numpy(), owners))
    if not np.array_equal(order, np.arange(len(order))):
        steps, owners = steps.take(order), owners[order]
    rows = np.argsort(pc.index_in(trajectories["trajectory_id"], value_set=wanted).to_numpy())
    starts = np.searchsorted(owners, np.arange(len(ids) + 1)).astype(np.int64)
    trajectories = _with_outcomes(lake, trajectories.take(rows))
    return TrajectoryBatch(trajectories, _without_nulls(steps.combine_chunks()), starts)


def _with_outcomes(lake: Lake, trajectories: pa.Table) -> pa.Table:
    """Recorded runs with what was last reported of them."""
    recorded = trajectories.filter(pc.equal(trajectories["origin"], TrajectoryOrigin.RECORDED))["trajectory_id"]
    if not len(recorded):
        return trajectories
    condition = f"list_contains({literal(recorded.to_pylist())}, trajectory_id)"
    told = lake.sql(f"select trajectory_id, success, score from trajectories where {condition}")
    places = pc.index_in(trajectories["trajectory_id"], value_set=told["trajectory_id"].combine_chunks())
    for name in ("success", "score"):
        column = pc.coalesce(told[name].take(places), trajectories[name])
        number = trajectories.schema.get_field_index(name)
        trajectories = trajectories.set_column(number, trajectories.schema.field(name), column)
    return trajectories


def _without_nulls(steps: pa.Table) -> pa.Table:
    """Texts that a record does not tell are empty."""
    for number, field in enumerate(steps.schema):
        if pa.types.is_string(field.type) and field.name != "screenshot" and steps.column(number).null_count:
            steps = steps.set_column(number, field, pc.fill_null(steps.column(number), ""))
    return steps


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
