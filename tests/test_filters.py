"""Verifiers earn trust: golden passes; initial state, no-ops, corruption and forgery fail; routes follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, LeakError
from flywheel.filters.catalog import VERIFIERS, make_verifiers
from flywheel.filters.curate import curate
from flywheel.filters.routing import route
from flywheel.filters.segments import segment
from flywheel.filters.verifier import Verifier
from flywheel.trajectory import RouteTo, Split, StopReason, Trajectory


@pytest.fixture(params=sorted(VERIFIERS))
def verifier(request: pytest.FixtureRequest, world: World) -> Verifier:
    return make_verifiers([request.param], world)[0]


def _cut(one: Trajectory, length: int) -> Trajectory:
    """The episode as it stood before step `length`."""
    stopped = one.steps[length]
    return replace(
        one,
        steps=one.steps[:length],
        length=length,
        success=False,
        stop_reason=StopReason.STEP_LIMIT,
        total_reward=sum(step.reward for step in one.steps[:length]),
        score=one.steps[length - 1].progress if length else 0.0,
        final_observation=stopped.observation,
        final_event=stopped.event,
        final_state_key=stopped.state_key,
    )


def test_golden_passes(verifier: Verifier, golden: list[Trajectory]) -> None:
    assert all(said.passed for said in verifier.verify(golden))


def test_the_initial_state_fails(verifier: Verifier, golden: list[Trajectory]) -> None:
    assert not any(said.passed for said in verifier.verify([_cut(one, 0) for one in golden]))


def test_half_a_solution_fails_with_partial_credit(verifier: Verifier, golden: list[Trajectory]) -> None:
    for said in verifier.verify([_cut(one, one.length - 2) for one in golden]):
        assert not said.passed
        assert 0 < said.completion < 100
        assert said.integrity == 1


def test_aimless_episodes_fail_honestly(verifier: Verifier, aimless: list[Trajectory]) -> None:
    for said in verifier.verify(aimless):
        assert not said.passed
        assert said.integrity == 1


def test_success_claimed_without_the_deed_fails(verifier: Verifier, golden: list[Trajectory]) -> None:
    forged = [replace(_cut(one, 5), success=True, stop_reason=StopReason.SUCCESS) for one in golden]
    verdicts = verifier.verify(forged)
    assert not any(said.passed for said in verdicts)


FORGERIES = {
    "observation": lambda one: replace(one.steps[4], observation="You are in paradise."),
    "answer": lambda one: replace(one.steps[4], event="You take the cake."),
    "reward": lambda one: replace(one.steps[4], reward=one.steps[4].reward + 0.125),
    "action": lambda one: replace(one.steps[4], action="look around"),
    "valid actions": lambda one: replace(one.steps[4], valid_actions=("win",)),
}


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_replay_catches_forged_steps(world: World, golden: list[Trajectory], forgery: str) -> None:
    replay = make_verifiers(["replay"], world)[0]
    for one in golden:
        forged = replace(one, steps=(*one.steps[:4], FORGERIES[forgery](one), *one.steps[5:]))
        said = replay.verify([forged])[0]
        assert not said.passed
        assert said.integrity < 1
        assert said.items[0].evidence.startswith("step ")


def test_replay_catches_another_seed_and_a_forged_end(world: World, golden: list[Trajectory]) -> None:
    replay = make_verifiers(["replay"], world)[0]
    assert not replay.verify([replace(golden[0], seed=golden[1].seed)])[0].passed
    assert not replay.verify([replace(golden[0], final_observation="A feast.")])[0].passed


def test_routes(world: World, golden: list[Trajectory], noisy: list[Trajectory]) -> None:
    verifiers = make_verifiers(sorted(VERIFIERS), world)

    def routed(one: Trajectory) -> tuple[RouteTo, bool]:
        said = route(one, [verifier.verify([one])[0] for verifier in verifiers], segment(one))
        return said.route, said.verified

    assert routed(golden[0]) == (RouteTo.SUPERVISED, True)
    assert routed(_cut(golden[0], 5)) == (RouteTo.EXECUTOR, False)
    assert routed(_cut(golden[0], 1)) == (RouteTo.CONTINUAL, False)
    assert routed(replace(golden[0], final_observation="A feast.")) == (RouteTo.QUARANTINE, False)
    broken = replace(_cut(golden[0], 0), stop_reason=StopReason.INFRASTRUCTURE, error="the JVM is gone")
    assert route(broken, [], []).route is RouteTo.QUARANTINE
    assert {routed(one)[0] for one in noisy} >= {RouteTo.SUPERVISED, RouteTo.EXECUTOR}


def test_curate_says_everything_once(smoke: Config, lake: Lake, noisy: list[Trajectory]) -> None:
    lake.append(noisy, "episodes")
    counts = curate(smoke, lake)
    assert sum(counts.values()) == len(noisy)
    before = lake.snapshot()
    assert curate(smoke, lake) == counts
    assert lake.snapshot() == before
    per = lake.sql("select count(*) as n from verdicts group by trajectory_id").to_pylist()
    assert {row["n"] for row in per} == {3}
    honest = lake.sql("select count(*) as n from trajectories where verified and not success").to_pylist()
    assert honest == [{"n": 0}]


def test_a_task_in_two_splits_is_refused(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    leaked = replace(golden[0], trajectory_id="leak", split=Split.TEST)
    lake.append([golden[0], leaked], "leak")
    with pytest.raises(LeakError, match="lies in test and train"):
        curate(smoke, lake)
    assert lake.sql("select count(*) as n from routes").to_pylist() == [{"n": 0}]


def test_unknown_verifier(world: World) -> None:
    with pytest.raises(ConfigError, match="unknown verifier 'judge'"):
        make_verifiers(["judge"], world)
