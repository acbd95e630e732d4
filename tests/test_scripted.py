"""Scripted teachers: what kinds of mistakes a noisy expert makes, and that it can take over any episode."""

from __future__ import annotations

import pytest

from flywheel.agents.policy import Policy
from flywheel.agents.scripted import LOOPS, Expert, Mistakes, RandomPolicy
from flywheel.config.root import load
from flywheel.environments.adapters.cookingworld import FINISH
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError
from flywheel.filters.batch import batch_of
from flywheel.filters.verifiers.replay import Replay
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Split, StopReason, Trajectory
from tests.conftest import ROOT, Play

SOME = 24


def injected(episodes: list[Trajectory]) -> int:
    return sum(not step.trainable for episode in episodes for step in episode.steps)


def test_no_mistakes_make_an_expert(world: World, play: Play) -> None:
    assert Expert(world).name == "expert"
    episodes = play(Expert(world), SOME)
    assert all(episode.success for episode in episodes)
    for step in (step for episode in episodes for step in episode.steps):
        assert step.trainable == (step.action in (step.valid_actions or ()))


def test_wrong_actions_are_marked_and_mostly_taken_back(world: World, play: Play) -> None:
    episodes = play(Expert(world, Mistakes(wrong_action=0.1)), SOME)
    steps = sum(episode.length for episode in episodes)
    assert 0.04 < injected(episodes) / steps < 0.2
    assert 0 < sum(episode.success for episode in episodes) < SOME


def test_a_skipped_subgoal_leaves_the_task_unsolved_and_nothing_marked(world: World, play: Play) -> None:
    episodes = play(Expert(world, Mistakes(skipped_subgoal=0.1)), SOME)
    whole = {trajectory.task_id: trajectory for trajectory in play(Expert(world), SOME)}
    failed = [episode for episode in episodes if not episode.success]
    assert failed and len(failed) < SOME
    for one in failed:
        done = {step.action for step in one.steps}
        deeds = {milestone.action for milestone in world.facts(one.task).milestones}
        assert deeds - done, "a deed that counts was left out"
        assert deeds <= {step.action for step in whole[one.task_id].steps}


def test_an_early_stop_gives_up(world: World, play: Play) -> None:
    episodes = play(Expert(world, Mistakes(early_stop=0.1)), SOME)
    stopped = [episode for episode in episodes if episode.stop_reason is StopReason.GAVE_UP]
    assert stopped and all(episode.success for episode in episodes if episode not in stopped)
    assert not any(trajectory.success for trajectory in stopped)


def test_a_loop_goes_round_and_comes_back(world: World, play: Play) -> None:
    episodes = play(Expert(world, Mistakes(loop=0.05)), SOME, max_steps=200)
    assert all(episode.success for episode in episodes)
    one = max(episodes, key=lambda trajectory: trajectory.length)
    first = next(step.index for step in one.steps if not step.trainable)
    there, back = (one.steps[first + offset].action for offset in (0, 1))
    assert [step.action for step in one.steps[first : first + 2 * LOOPS]] == [there, back] * LOOPS
    assert one.steps[first].state_key == one.steps[first + 2].state_key


def test_every_kind_has_an_identity_of_its_own(world: World) -> None:
    kinds = [Mistakes(**{kind: 0.1}) for kind in ("wrong_action", "skipped_subgoal", "early_stop", "loop")]
    assert len({Expert(world, kind).policy_id for kind in kinds} | {Expert(world).policy_id}) == 5


def test_a_config_names_kinds_and_rates() -> None:
    smoke = ROOT / "configs" / "smoke.toml"
    config = load(smoke, ["collect.mistakes={loop=0.2, early_stop=0.1}"])
    assert Mistakes(**config.collect.mistakes.model_dump()) == Mistakes(0.1, loop=0.2, early_stop=0.1)
    with pytest.raises(ConfigError, match="add up to more than 1"):
        load(smoke, ["collect.mistakes={loop=0.6, early_stop=0.6}"])


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_an_expert_takes_over_what_others_began(world: World, steps: int) -> None:
    """Random steps first; the expert undoes what can be undone and goes on. Some of it is ruined for good."""
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 60, 12)]
    expert: Policy = Expert(world)
    solved = 0
    for job in jobs:
        rollout = Rollout(
            Takeover(steps, RandomPolicy(seed=steps), expert),
            [job],
            in_process(world, 1),
            budget=Budget(60),
            origin=ORIGIN,
        )
        (one,) = rollout
        solved += one.success
        assert len({step.policy_id for step in one.steps}) <= 1
    assert solved >= len(jobs) // 3


ORIGIN = Origin(1, "collect", "test")


class Takeover:
    """One policy for so many steps, then another."""

    name, policy_id, version = "takeover", "takeover", "1"

    def __init__(self, steps: int, first: Policy, second: Policy) -> None:
        self._steps, self._first, self._second = steps, first, second

    def begin(self, slot, task, attempt, past=()):  # type: ignore[no-untyped-def]
        self._task, self._past = task, list(past)
        self._first.begin(slot, task, attempt)

    def act(self, turns):  # type: ignore[no-untyped-def]
        (turn,) = turns
        if len(self._past) == self._steps:
            self._second.begin(turn.slot, self._task, 0, self._past)
        policy = self._first if len(self._past) < self._steps else self._second
        (decision,) = policy.act(turns)
        self._past.append((turn.observation, decision))
        return [decision]


def test_a_kitchen_where_done_must_be_said() -> None:
    from flywheel.environments.catalog import canonical, open_world

    parameters = {"numLocations": 2, "numIngredients": 2, "numDistractorItems": 2, "includeDoors": 0, "declare": 1}
    with open_world("cookingworld", canonical(parameters)) as world:
        jobs = [Job(task) for task in world.tasks(Split.TRAIN, 0, 8)]

        def played(policy: Policy) -> list[Trajectory]:
            return list(Rollout(policy, jobs, in_process(world, 4), budget=Budget(60), origin=ORIGIN))

        whole = played(Expert(world))
        assert all(trajectory.success and trajectory.steps[-1].action == FINISH for trajectory in whole)
        assert all(one.steps[-2].progress == pytest.approx(0.9) and one.score == 1.0 for one in whole)
        hasty = played(Expert(world, Mistakes(early_stop=0.1)))
        assert any(
            trajectory.stop_reason is StopReason.FAILURE and trajectory.steps[-1].action == FINISH
            for trajectory in hasty
        )
        assert all(said.integrity == 1 for said in Replay(world).verify(batch_of([*whole, *hasty])))
