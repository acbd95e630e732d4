"""On-policy distillation: the student leads into its own states, the teacher's recovery from them is what teaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.agents.mixture import Mixture, Stretch
from flywheel.agents.prompts import Role
from flywheel.agents.scripted import Expert, RandomPolicy
from flywheel.config import load
from flywheel.datasets.lake import Lake
from flywheel.distill.collection import plan
from flywheel.distill.corpus import load_corpus
from flywheel.distill.examples import windows_of
from flywheel.distill.policies import TUTORED
from flywheel.distill.students import limits_of
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError
from flywheel.filters.batch import batch_of
from flywheel.filters.curate import curate
from flywheel.filters.replay import Replay
from tests.conftest import Play

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
LONGEST = 5


def test_the_expert_finishes_what_a_student_began(world: World, play: Play) -> None:
    episodes = play(Mixture(RandomPolicy(), Expert(world), Stretch(LONGEST)), 16)
    assert any(not step.trainable for one in episodes for step in one.steps)
    assert sum(one.success for one in episodes) > len(episodes) / 2
    assert all(said.integrity == 1 for said in Replay(world).verify(batch_of(episodes)))
    for one in episodes:
        for step in one.steps[LONGEST:]:
            assert step.trainable == (step.action in (step.valid_actions or ()))


def test_a_student_that_does_what_the_expert_would_is_believed(world: World, play: Play) -> None:
    whole = {one.task_id: one for one in play(Expert(world), 4)}
    for one in play(Mixture(Expert(world, seed=1), Expert(world), Stretch(LONGEST)), 4):
        assert all(step.trainable for step in one.steps)
        assert [step.action for step in one.steps] == [step.action for step in whole[one.task_id].steps]


def test_its_missteps_are_context_and_its_recovery_is_learned(lake: Lake, world: World, play: Play) -> None:
    settings = load(SMOKE, [f"data_dir={lake.root}"])
    lake.append(play(Mixture(RandomPolicy(), Expert(world), Stretch(LONGEST)), 16), "tutored")
    curate(settings, lake)
    corpus = load_corpus(settings, lake, 1)
    read = {one.trajectory_id: (one, cut) for one, cut in corpus.read(list(corpus.routes))}
    assert {one.policy for one, _ in read.values()} == {TUTORED}
    one, cut = next((one, cut) for one, cut in read.values() if not one.steps[0].trainable and one.success)
    pieces = [
        piece
        for window in windows_of(one, cut, limits_of(settings.student), Role.FLAT)
        for piece in window.pieces
        if piece.decision >= 0
    ]
    assert [piece.target for piece in pieces] == [step.trainable for step in one.steps]


def test_its_share_of_an_iteration() -> None:
    settings = load(SMOKE, ["collect.tutored_share=0.25", "collect.later_episodes=40"])
    assert {share.policy: share.count for share in plan(settings, 2, "flat-1")}[TUTORED] == 10
    assert TUTORED not in {share.policy for share in plan(settings, 1, "flat-1")}
    with pytest.raises(ConfigError, match="parts of one whole"):
        load(SMOKE, ["collect.tutored_share=0.9"])
