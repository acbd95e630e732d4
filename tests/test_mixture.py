"""On-policy distillation: the student leads into its own states, the teacher's recovery from them is what teaches."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from flywheel.agents.contexts.prompts import END, Role
from flywheel.agents.mixture import Coin, Escalation, Mixture, Stretch
from flywheel.agents.scripted import Expert, RandomPolicy
from flywheel.collect.stage import plan
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import windows_of
from flywheel.distill.data.corpus import load_corpus
from flywheel.distill.stage import distill
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError
from flywheel.filters.batch import batch_of
from flywheel.filters.curate import curate
from flywheel.filters.verifiers.replay import Replay
from flywheel.policies.card import limits_of
from flywheel.policies.factory import TUTORED
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import load_policy
from flywheel.trajectory import Trajectory
from tests.conftest import Play

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
LONGEST = 5


def test_the_expert_finishes_what_a_student_began(world: World, play: Play) -> None:
    episodes = play(Mixture(RandomPolicy(), Expert(world), Stretch(LONGEST)), 16)
    assert any(not step.trainable for episode in episodes for step in episode.steps)
    assert sum(episode.success for episode in episodes) > len(episodes) / 2
    assert all(said.integrity == 1 for said in Replay(world).verify(batch_of(episodes)))
    for episode in episodes:
        for step in episode.steps[LONGEST:]:
            assert step.trainable == (step.action in (step.valid_actions or ()))


def test_a_student_that_does_what_the_expert_would_is_believed(world: World, play: Play) -> None:
    whole = {trajectory.task_id: trajectory for trajectory in play(Expert(world), 4)}
    for one in play(Mixture(Expert(world, seed=1), Expert(world), Stretch(LONGEST)), 4):
        assert all(step.trainable for step in one.steps)
        assert [step.action for step in one.steps] == [step.action for step in whole[one.task_id].steps]


def test_its_missteps_are_context_and_its_recovery_is_learned(lake: Lake, world: World, play: Play) -> None:
    settings = load(SMOKE, [f"data_dir={lake.root}"])
    lake.append(play(Mixture(RandomPolicy(), Expert(world), Stretch(LONGEST)), 16), "tutored")
    curate(settings, lake)
    corpus = load_corpus(settings, lake, 1)
    read = {trajectory.trajectory_id: (trajectory, cut) for trajectory, cut in corpus.read(list(corpus.routes))}
    assert {one.policy for one, _ in read.values()} == {TUTORED}
    one, cut = next(
        (trajectory, cut)
        for trajectory, cut in read.values()
        if not trajectory.steps[0].trainable and trajectory.success
    )
    pieces = [
        piece
        for window in windows_of(one, cut, limits_of(settings.student), Role.FLAT)
        for piece in window.pieces
        if piece.decision >= 0
    ]
    assert [piece.target for piece in pieces] == [step.trainable for step in one.steps]


def test_what_the_teacher_would_have_done_is_learned_where_the_student_acted(world: World, play: Play) -> None:
    """Dataset aggregation: the student's state, the teacher's action, and no trace of it in what follows."""
    one, *_ = [
        trajectory
        for trajectory in play(Mixture(RandomPolicy(), Expert(world), Coin(0.5)), 8)
        if trajectory.success
        and sum(step.teacher_action is not None and step.teacher_action != step.action for step in trajectory.steps) > 2
    ]
    corrected = [step for step in one.steps if step.teacher_action is not None and step.teacher_action != step.action]
    assert all(not step.trainable for step in corrected)
    assert all(step.teacher_action in (step.valid_actions or ()) for step in corrected)
    windows = windows_of(one, [], limits_of(load(SMOKE).student), Role.FLAT)
    targets = [piece for window in windows for piece in window.pieces if piece.target]
    assert [target.spelling for target in targets if target.decision == -1] == [
        f"{step.teacher_action}{END}" for step in corrected
    ]
    assert [target.decision for target in targets if target.decision >= 0] == [
        s.index for s in one.steps if s.trainable
    ]


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_coin_with_one_side(world: World, play: Play, beta: float) -> None:
    student, teacher = RandomPolicy(), Expert(world)
    episodes = play(Mixture(student, teacher, Coin(beta)), 4, max_steps=20)
    acted = {step.policy_id for episode in episodes for step in episode.steps}
    assert acted == {student.policy_id if beta else teacher.policy_id}
    assert all(episode.success for episode in episodes) == (beta == 0.0)


def test_a_student_whose_subgoals_fail_is_helped_for_a_while(
    lake: Lake, world: World, play: Play, golden: list[Trajectory]
) -> None:
    """An untrained student is soon stuck; the teacher comes for its steps and leaves again."""
    settings = load(
        SMOKE, [f"data_dir={lake.root}", "train.epochs={planner=1, executor=1, flat=1}", "student.segment_steps=3"]
    )
    lake.append(golden, "expert")
    curate(settings, lake)
    card = distill(settings, lake, "hierarchical", 1)
    student = load_policy(policy_directory(lake, card.policy_id))
    teacher = Expert(world)
    episodes = play(Mixture(student, teacher, Escalation(failures=2, steps=4)), 8, max_steps=60)
    helped = [episode for episode in episodes if any(step.policy_id == teacher.policy_id for step in episode.steps)]
    assert helped
    for one in helped:
        deciders = [step.policy_id == teacher.policy_id for step in one.steps]
        first = deciders.index(True)
        assert first >= 4 and not any(deciders[:first])
        runs = [len(list(run)) for taught, run in groupby(deciders) if taught]
        assert all(run == 4 for run in runs[:-1]) and runs[-1] <= 4
        assert {step.teacher_action for step in one.steps} == {None}
        after = first + 4
        if after < one.length:
            assert one.steps[after].new_subgoal, "the student plans anew when it is its turn again"


def test_its_share_of_an_iteration() -> None:
    settings = load(SMOKE, ["collect.tutored_share=0.25", "collect.later_episodes=40"])
    assert {share.policy: share.count for share in plan(settings, 2, "flat-1")}[TUTORED] == 10
    assert TUTORED not in {share.policy for share in plan(settings, 1, "flat-1")}
    with pytest.raises(ConfigError, match="parts of one whole"):
        load(SMOKE, ["collect.tutored_share=0.9"])
