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
    Item,
    Route,
    RouteTo,
    Segment,
    Split,
    Step,
    StopReason,
    Task,
    Trajectory,
    Verdict,
    trajectory_id,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
small = st.integers(0, 2**31 - 1)
words = st.lists(text, max_size=3).map(tuple)
floats32 = st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(tuple)

steps = st.builds(
    Step,
    index=st.just(0),
    observation=text,
    event=text,
    note=text,
    place=text,
    state_key=text,
    valid_actions=st.none() | words,
    thought=text,
    subgoal=text,
    switched=st.booleans(),
    action=text,
    reward=number,
    progress=number,
    terminated=st.booleans(),
    truncated=st.booleans(),
    policy_id=text,
    policy_version=text,
    trainable=st.booleans(),
    prompt_tokens=small,
    completion_tokens=small,
    logprobs=st.none() | floats32,
    seconds=number,
)
episodes = st.builds(
    Trajectory,
    trajectory_id=st.uuids().map(str),
    environment=text,
    parameters=text,
    split=st.sampled_from(Split),
    seed=st.integers(-(2**63), 2**63 - 1),
    task_id=text,
    task_group=text,
    instruction=text,
    policy=text,
    policy_id=text,
    policy_version=text,
    iteration=small,
    purpose=text,
    attempt=small,
    stop_reason=st.sampled_from(StopReason),
    success=st.booleans(),
    score=number,
    total_reward=number,
    length=small,
    final_observation=text,
    final_event=text,
    final_state_key=text,
    error=text,
    parent_policy_id=text,
    config_digest=text,
    started_at=number,
    schema_version=small,
    steps=st.lists(steps, max_size=4).map(
        lambda some: tuple(dataclasses.replace(step, index=index) for index, step in enumerate(some))
    ),
)
verdicts = st.builds(
    Verdict,
    trajectory_id=text,
    verifier=text,
    version=text,
    arguments=text,
    completion=number,
    integrity=number,
    completion_threshold=number,
    integrity_threshold=number,
    passed=st.booleans(),
    confidence=number,
    items=st.lists(st.builds(Item, name=text, points=number, fraction=number, evidence=text), max_size=2).map(tuple),
    raw=text,
)
routes = st.builds(Route, text, st.sampled_from(RouteTo), st.booleans(), text, text)
segments = st.builds(Segment, text, small, small, small, text, st.booleans(), number, text)


def _through_parquet(table):  # type: ignore[no-untyped-def]
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(buffer)


@settings(max_examples=60)
@given(st.lists(episodes, max_size=3, unique_by=lambda one: one.trajectory_id))
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
