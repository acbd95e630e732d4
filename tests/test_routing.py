"""Routing: nothing is thrown away, everything has a reason, and the lake's views hand each kind of data out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.filters.calibration.reward_hacks import cut
from flywheel.filters.curate import curate, route_reasons
from flywheel.filters.routing import COPIED, Case, route
from flywheel.filters.segments import segment
from flywheel.trajectory import (
    Item,
    RouteTo,
    Split,
    StopReason,
    Task,
    Trajectory,
    Verdict,
    trajectory_id,
)

PASSED = Verdict("t", "good", "1", "{}", 100.0, 1.0, 99.0, 1.0, True, 1.0, (), "")
FAILED = replace(PASSED, verifier="outcome", completion=50.0, passed=False)
FORGED = replace(FAILED, verifier="replay", integrity=0.5, items=(Item("it happened", 0.0, 0.0, "step 3"),))


def case(**changes: Any) -> Case:
    plain: dict[str, Any] = {"split": Split.TRAIN, "stop_reason": StopReason.SUCCESS, "verdicts": [PASSED]}
    return Case("t", **{**plain, "segments": (), **changes})


def test_every_kind_of_trajectory_has_its_place(golden: list[Trajectory]) -> None:
    done = segment(golden[0])
    for given, to, reason in (
        (case(), RouteTo.SUPERVISED, "every verifier passed"),
        (case(repeats=True), RouteTo.DUPLICATE, "an earlier training episode says the same"),
        (case(copied=True), RouteTo.QUARANTINE, COPIED),
        (
            case(verdicts=[PASSED, FAILED], segments=done),
            RouteTo.EXECUTOR,
            "outcome failed, but holds completed segments",
        ),
        (case(verdicts=[FAILED], segments=done[-1:0]), RouteTo.CONTINUAL, "outcome failed, nothing completed"),
        (case(verdicts=[FAILED, FORGED], segments=done), RouteTo.QUARANTINE, "replay: not so: it happened"),
        (case(split=Split.DEV), RouteTo.HELD_OUT, "dev episode"),
        (case(split=Split.TEST, verdicts=[FORGED]), RouteTo.QUARANTINE, "replay: not so: it happened"),
        (case(stop_reason=StopReason.INFRASTRUCTURE, verdicts=[]), RouteTo.QUARANTINE, "infrastructure failure"),
    ):
        found = route(given)
        assert (found.route, found.reason) == (to, reason)
        assert found.verified == (given.verdicts == [PASSED] and not given.copied)


def failing(one: Trajectory) -> Trajectory:
    """Another attempt at the same task that stopped half-way."""
    half = cut(one, one.length // 2)
    task = Task(one.environment, one.parameters, one.split, one.seed, one.instruction)
    name = trajectory_id(task, one.policy_id, one.policy_version, one.purpose, 1)
    steps = tuple(replace(step, seconds=step.seconds + 0.01, subgoal="make dinner") for step in half.steps)
    return replace(half, trajectory_id=name, attempt=1, steps=steps)


@pytest.fixture
def curated(smoke: Config, lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append([*golden, failing(golden[0])], "episodes")
    curate(smoke, lake)
    return lake


def test_pairs_join_success_and_honest_failure_of_one_task(curated: Lake, golden: list[Trajectory]) -> None:
    rows = curated.sql("select * from pairs").to_pylist()
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        (golden[0].trajectory_id, failing(golden[0]).trajectory_id)
    ]
    assert rows[0]["task_id"] == golden[0].task_id
    assert rows[0]["rejected_length"] == golden[0].length // 2


def test_completed_segments_of_failures_are_relabelled(curated: Lake, golden: list[Trajectory]) -> None:
    failed = failing(golden[0])
    rows = curated.sql("from relabelled order by start").to_pylist()
    assert {row["trajectory_id"] for row in rows} == {failed.trajectory_id}
    assert {row["relabelled_from"] for row in rows} == {"make dinner"}
    done = [(part.start, part.end, part.subgoal) for part in segment(failed) if part.completed]
    assert [(row["start"], row["end"], row["subgoal"]) for row in rows] == done


def test_reasons_are_few_and_each_has_an_example(curated: Lake, golden: list[Trajectory]) -> None:
    rows = route_reasons(curated)
    assert sum(row["trajectories"] for row in rows) == len(golden) + 1
    for row in rows:
        assert curated.trajectories([row["example"]])


def test_episodes_without_steps_are_curated_and_again(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    empty = [replace(cut(episode, 0), stop_reason=StopReason.NO_ACTION, final_inputs=None) for episode in golden[:2]]
    lake.append(empty, "nobody knew what to do")
    assert curate(smoke, lake) == {"continual": 2}
    lake.append(golden[2:3], "one that went on")
    assert curate(smoke, lake) == {"continual": 2, "supervised": 1}
