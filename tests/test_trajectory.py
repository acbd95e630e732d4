"""The data contract: objects to Arrow and back, without loss."""

from __future__ import annotations

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.arrow import (
    ARROW_SCHEMAS,
    routes_from_arrow,
    routes_to_arrow,
    segments_from_arrow,
    segments_to_arrow,
    steps_to_arrow,
    trajectories_from_arrow,
    trajectories_to_arrow,
    verdicts_from_arrow,
    verdicts_to_arrow,
)
from flywheel.trajectory import (
    Route,
    Segment,
    Split,
    Task,
    Trajectory,
    Verdict,
    trajectory_id,
)
from tests.strategies import episodes, routes, segments, verdicts


def _through_parquet(table):  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(buffer)


@settings(max_examples=60)
@given(st.lists(episodes, max_size=3, unique_by=lambda trajectory: trajectory.trajectory_id))
def test_trajectories_survive_arrow_and_parquet(some: list[Trajectory]) -> None:
    tables = (
        trajectories_to_arrow(some),
        pa.concat_tables([ARROW_SCHEMAS["steps"].empty_table(), *steps_to_arrow(some)]),
    )
    assert trajectories_from_arrow(*tables) == some
    assert trajectories_from_arrow(*map(_through_parquet, tables)) == some


@settings(max_examples=40)
@given(st.lists(verdicts, max_size=3), st.lists(routes, max_size=3), st.lists(segments, max_size=3))
def test_facts_survive_arrow_and_parquet(said: list[Verdict], went: list[Route], parts: list[Segment]) -> None:
    assert verdicts_from_arrow(_through_parquet(verdicts_to_arrow(said))) == said
    assert routes_from_arrow(_through_parquet(routes_to_arrow(went))) == went
    assert segments_from_arrow(_through_parquet(segments_to_arrow(parts))) == parts


def test_ids_are_deterministic_and_tell_attempts_apart() -> None:
    task = Task("cookingworld", "{}", Split.TRAIN, 7)
    assert trajectory_id(task, "p", "1", "collect", 0) == trajectory_id(task, "p", "1", "collect", 0)
    others = {
        trajectory_id(task, "p", "1", "collect", 1),
        trajectory_id(task, "p", "2", "collect", 0),
        trajectory_id(task, "q", "1", "collect", 0),
        trajectory_id(task, "p", "1", "evaluate", 0),
        trajectory_id(dataclasses.replace(task, parameters="{1}"), "p", "1", "collect", 0),
    }
    assert len(others | {trajectory_id(task, "p", "1", "collect", 0)}) == 6


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Task("e", "{}", Split.TRAIN, 0).seed = 1  # type: ignore[misc]
