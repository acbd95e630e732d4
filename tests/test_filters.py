"""Verifiers earn trust: golden passes; initial state, no-ops, corruption and forgery fail; pipelines are a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flywheel.agents.policy import Decision, Turn
from flywheel.agents.scripted import NO_OP, Expert, Idle
from flywheel.config.curate import VerifierConfig
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import Environment, Observation, Transition, World
from flywheel.errors import ConfigError, ContaminationError
from flywheel.filters.batch import batch_of, read_batch
from flywheel.filters.calibration.labelled import corrupted
from flywheel.filters.calibration.reward_hacks import cut
from flywheel.filters.curate import curate, preview, route_reasons
from flywheel.filters.verifiers.catalog import VERIFIERS, Tools, make_verifiers
from flywheel.filters.verifiers.privileged import MOST_ITEMS
from flywheel.filters.verifiers.protocol import Verifier
from flywheel.filters.verifiers.replay import Replay
from flywheel.trajectory import Split, StopReason, Task, Trajectory, Verdict
from tests.conftest import Play

ROOT = Path(__file__).parents[1]
LOCAL = sorted(VERIFIERS.keys() - {"judge", "program"})
"""The judge asks a server, which tests/test_judge.py has; a program is the user's own."""


def made(name: str, world: World | None, **arguments: Any) -> Verifier:
    if name == "ensemble" and not arguments:
        arguments = {"members": ["outcome", "process", "replay"]}
    return make_verifiers([VerifierConfig(name=name, arguments=arguments)], Tools(world, Path("unused")))[0]


@pytest.fixture(params=LOCAL)
def verifier(request: pytest.FixtureRequest, world: World) -> Verifier:
    return made(request.param, world)


def says(verifier: Verifier, episodes: Sequence[Trajectory]) -> list[Verdict]:
    return verifier.verify(batch_of(episodes))


def test_golden_passes(verifier: Verifier, golden: list[Trajectory]) -> None:
    assert all(verdict.passed for verdict in says(verifier, golden))


def test_the_initial_state_fails(verifier: Verifier, golden: list[Trajectory]) -> None:
    assert not any(verdict.passed for verdict in says(verifier, [cut(trajectory, 0) for trajectory in golden]))


def test_no_ops_fail(verifier: Verifier, play: Play) -> None:
    assert not any(verdict.passed for verdict in says(verifier, play(Idle(), 4, max_steps=6)))


def test_a_corrupted_golden_episode_fails(verifier: Verifier, golden: list[Trajectory]) -> None:
    assert not any(verdict.passed for verdict in says(verifier, [corrupted(trajectory) for trajectory in golden]))


def test_half_a_solution_fails_with_partial_credit(verifier: Verifier, golden: list[Trajectory]) -> None:
    for verdict in says(verifier, [cut(trajectory, trajectory.length - 2) for trajectory in golden]):
        assert not verdict.passed
        assert verdict.verifier == "ensemble" or 0 < verdict.completion < 100
        assert verdict.integrity == 1


def test_aimless_episodes_fail_honestly(verifier: Verifier, aimless: list[Trajectory]) -> None:
    for verdict in says(verifier, aimless):
        assert not verdict.passed
        assert verdict.integrity == 1


def test_verdicts_do_not_depend_on_the_batch(
    verifier: Verifier, golden: list[Trajectory], noisy: list[Trajectory], lake: Lake
) -> None:
    episodes = [*noisy, *golden]
    together = says(verifier, episodes)
    alone = [says(verifier, [episode])[0] for episode in episodes]
    assert [replace(one, created_at=0.0) for one in together] == [replace(one, created_at=0.0) for one in alone]
    lake.append(episodes, "episodes")
    stored = verifier.verify(read_batch(lake, [episode.trajectory_id for episode in reversed(episodes)]))
    assert [replace(one, created_at=0.0) for one in reversed(stored)] == [replace(one, created_at=0.0) for one in alone]


FORGERIES = {
    "observation": lambda one: replace(one.steps[4], observation="You are in paradise."),
    "answer": lambda one: replace(one.steps[4], feedback="You take the cake."),
    "reward": lambda one: replace(one.steps[4], reward=one.steps[4].reward + 0.125),
    "reward left out": lambda one: replace(one.steps[4], reward=None),
    "progress left out": lambda one: replace(one.steps[4], progress=None),
    "action": lambda one: replace(one.steps[4], action="look around"),
    "valid actions": lambda one: replace(one.steps[4], valid_actions=("win",)),
}


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_replay_catches_forged_steps(world: World, golden: list[Trajectory], forgery: str) -> None:
    for trajectory in golden:
        forged = replace(
            trajectory, steps=(*trajectory.steps[:4], FORGERIES[forgery](trajectory), *trajectory.steps[5:])
        )
        verdict = says(Replay(world), [forged])[0]
        assert not verdict.passed
        assert verdict.integrity < 1
        assert verdict.items[0].evidence.startswith("step ")


def test_replay_catches_another_seed_and_a_forged_end(world: World, golden: list[Trajectory]) -> None:
    assert not says(Replay(world), [replace(golden[0], seed=golden[1].seed)])[0].passed
    assert not says(Replay(world), [replace(golden[0], final_observation="A feast.")])[0].passed


class Dice:
    """The real world, except that it tells the time of day, which nobody can play again."""

    def __init__(self, world: World) -> None:
        self._world, self._throws = world, 0

    def environments(self, count: int) -> Sequence[Environment]:
        return [Thrown(environment, self) for environment in self._world.environments(count)]

    def find(self, split: Split, seed: int) -> Task:
        return self._world.find(split, seed)

    def tell(self, seen: Observation) -> Observation:
        self._throws += 1
        return replace(seen, text=f"{seen.text} It is {self._throws} past ten.")


class Thrown:
    def __init__(self, environment: Environment, dice: Dice) -> None:
        self._environment, self._dice = environment, dice

    def reset(self, task: Task) -> Observation:
        return self._dice.tell(self._environment.reset(task))

    def step(self, action: str) -> Transition:
        done = self._environment.step(action)
        return replace(done, observation=self._dice.tell(done.observation))


def test_replay_tells_chance_from_forgery(world: World, golden: list[Trajectory]) -> None:
    verdict = says(Replay(Dice(world)), golden)[0]  # type: ignore[arg-type]
    assert not verdict.passed
    assert verdict.integrity == 1
    assert verdict.confidence == 0
    assert "not deterministic" in verdict.items[0].evidence


def test_redacted_actions_are_no_forgery(world: World, golden: list[Trajectory]) -> None:
    hidden = replace(golden[0].steps[2], action="mail [REDACTED:e-mail address]")
    verdict = says(Replay(world), [replace(golden[0], steps=(*golden[0].steps[:2], hidden, *golden[0].steps[3:]))])[0]
    assert (verdict.passed, verdict.integrity, verdict.confidence) == (False, 1.0, 0.0)


def test_the_checklist_has_few_weighted_items_with_evidence(world: World, golden: list[Trajectory]) -> None:
    for verdict in says(made("privileged", world), golden):
        weighted = [item for item in verdict.items if item.points]
        assert 3 <= len(weighted) <= MOST_ITEMS
        assert sum(item.points for item in weighted) == pytest.approx(100)
        assert all("step" in item.evidence for item in weighted)


def test_process_tells_loops_idling_and_detours(world: World, golden: list[Trajectory]) -> None:
    one = golden[0]
    still = replace(one.steps[0], reward=0.0, progress=0.0, terminated=False)
    loop = tuple(replace(still, index=index) for index in range(4 * one.length))
    wasted = replace(one, steps=(*loop, *(replace(step, index=step.index + len(loop)) for step in one.steps)))
    verdict = says(made("process", world), [replace(wasted, length=len(wasted.steps))])[0]
    assert not verdict.passed
    kept = {item.name.split()[0]: item.fraction for item in verdict.items}
    assert kept == {"idle": 0.0, "loops": 0.0, "invalid": 1.0, "detour": 0.0}


class Dawdler(Expert):
    """The expert, after it has stood around for a while."""

    _turns = 0

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        self._turns += 1
        return [Decision(NO_OP) for _ in turns] if self._turns <= 30 else super().act(turns)


@pytest.mark.parametrize(("rule", "passes"), [("all", False), ("majority", True), ("any", True)])
def test_ensembles_follow_their_rule(world: World, play: Play, rule: str, passes: bool) -> None:
    """The process of a dawdler is poor, its success is real."""
    ensemble = made("ensemble", world, rule=rule, members=["outcome", "process", "replay"])
    verdict = says(ensemble, play(Dawdler(world), 1, max_steps=80))[0]
    assert [item.fraction for item in verdict.items] == [1.0, 0.0, 1.0]
    assert verdict.completion == pytest.approx(200 / 3)
    assert verdict.confidence == pytest.approx(2 / 3)
    assert verdict.passed == passes


def test_members_of_an_ensemble_take_arguments(world: World, golden: list[Trajectory]) -> None:
    lax, strict = ({"name": "process", "arguments": {"max_detour": limit}} for limit in (3.0, 0.5))
    assert says(made("ensemble", world, rule="all", members=["outcome", lax]), golden[:1])[0].passed
    assert not says(made("ensemble", world, rule="all", members=["outcome", strict]), golden[:1])[0].passed
    with pytest.raises(ConfigError, match="members of an ensemble"):
        made("ensemble", world, members=["outcome", {"nam": "process"}])


def test_an_ensemble_denies_integrity_where_a_member_does(world: World, golden: list[Trajectory]) -> None:
    forged = replace(golden[0], final_observation="A feast.")
    verdict = says(made("ensemble", world, rule="any", members=["outcome", "replay"]), [forged])[0]
    assert (verdict.completion, verdict.passed) == (50.0, False)


def test_curate_says_everything_once(smoke: Config, lake: Lake, noisy: list[Trajectory]) -> None:
    lake.append(noisy, "episodes")
    counts = curate(smoke, lake)
    assert sum(counts.values()) == len(noisy)
    before = lake.snapshot()
    assert curate(smoke, lake) == counts
    assert lake.snapshot() == before
    per = lake.sql("select count(*) as n from verdicts group by trajectory_id").to_pylist()
    assert {row["n"] for row in per} == {3}
    assert lake.sql("select count(*) as n from fingerprints").to_pylist() == [{"n": len(noisy)}]
    honest = lake.sql("select count(*) as n from trajectories where verified and not success").to_pylist()
    assert honest == [{"n": 0}]


def test_a_task_in_two_splits_is_refused(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    leaked = replace(golden[0], trajectory_id="leak", split=Split.TEST)
    lake.append([golden[0], leaked], "leak")
    with pytest.raises(ContaminationError, match="lies in test and train"):
        curate(smoke, lake)
    assert lake.sql("select count(*) as n from routes").to_pylist() == [{"n": 0}]


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        ('["umpire"]', "unknown verifier 'umpire'"),
        ('[{ name = "process", arguments = { max_naps = 3 } }]', "max_naps"),
        ('[{ name = "ensemble", arguments = { members = ["outcome"] } }]', "at least two"),
        ('[{ name = "ensemble", arguments = { members = ["outcome", "replay"], rule = "dice" } }]', "unknown rule"),
        ('[{ name = "judge" }]', "needs model"),
        ('[{ name = "replay", gate = false }]', "no verifier gates"),
    ],
)
def test_a_pipeline_that_cannot_work_is_refused_before_anything_is_written(
    lake: Lake, golden: list[Trajectory], pipeline: str, problem: str
) -> None:
    lake.append(golden[:1], "one")
    before = lake.snapshot()
    with pytest.raises(ConfigError, match=problem):
        curate(load(ROOT / "configs" / "smoke.toml", [f"curate.verifiers={pipeline}"]), lake)
    assert lake.snapshot() == before


def test_a_verifier_that_does_not_gate_is_heard_and_decides_nothing(lake: Lake, golden: list[Trajectory]) -> None:
    strict = '{ name = "process", gate = false, arguments = { max_invalid = 0.0, max_detour = 0.1 } }'
    config = load(ROOT / "configs" / "smoke.toml", [f'curate.verifiers=["outcome", {strict}]'])
    lake.append(golden, "golden")
    assert curate(config, lake) == {"supervised": len(golden)}
    passed = lake.sql("select verifier, count_if(passed) as n from verdicts group by all order by all").to_pylist()
    assert passed == [{"verifier": "outcome", "n": len(golden)}, {"verifier": "process", "n": 0}]


def test_several_processes_say_what_one_says(
    smoke: Config, lake: Lake, noisy: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.filters.waiting.CHUNK", 2)  # batches enough for two processes

    def verdict(workers: int) -> list[dict[str, Any]]:
        with Lake(tmp_path / f"{workers}", create=True) as mine:
            mine.append(noisy, "episodes")
            settings = smoke.curate.model_copy(update={"workers": workers})
            curate(smoke.model_copy(update={"curate": settings}), mine)
            return mine.sql("select * exclude created_at from verdicts order by all").to_pylist()

    assert verdict(2) == verdict(1)


def test_a_dry_run_says_where_everything_would_go_and_writes_nothing(
    smoke: Config, lake: Lake, noisy: list[Trajectory]
) -> None:
    broken = replace(cut(noisy[0], 0), trajectory_id="broken", stop_reason=StopReason.INFRASTRUCTURE, error="gone")
    lake.append([*noisy[1:], broken], "episodes")
    before = lake.snapshot()
    foreseen = preview(smoke, lake)
    assert lake.snapshot() == before
    curate(smoke, lake)
    key = lambda row: (row["route"], row["reason"])  # noqa: E731
    assert sorted(foreseen, key=key) == sorted(route_reasons(lake), key=key)
    assert {
        "route": "quarantine",
        "reason": "infrastructure failure",
        "trajectories": 1,
        "example": "broken",
    } in foreseen


def test_infrastructure_failures_stay_out_of_training_and_statistics(
    smoke: Config, lake: Lake, golden: list[Trajectory]
) -> None:
    broken = replace(cut(golden[0], 3), stop_reason=StopReason.INFRASTRUCTURE, error="the JVM is gone")
    lake.append([broken], "broken")
    assert curate(smoke, lake) == {"quarantine": 1}
    assert lake.sql("select count(*) as n from verdicts").to_pylist() == [{"n": 0}]
    assert lake.sql("select verified, route_reason from trajectories").to_pylist() == [
        {"verified": 0, "route_reason": "infrastructure failure"}
    ]
