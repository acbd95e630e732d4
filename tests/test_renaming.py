"""Renaming: a permutation of instances that keeps everything else, and can be taken back."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.prompts import Role
from flywheel.distill.batching.examples import windows_of
from flywheel.distill.data.renaming import exchangeable_names, renamed, shuffled
from flywheel.filters.segments import segment
from flywheel.policies.tokenizer import named_things
from flywheel.trajectory import Trajectory


def _exchangeable(trajectories: list[Trajectory]) -> list[str]:
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    return exchangeable_names(
        named_things(step.action for step in steps), {step.document for step in steps if step.document}
    )


def test_only_instances_are_exchangeable(golden: list[Trajectory], noisy: list[Trajectory]) -> None:
    names = _exchangeable([*golden, *noisy])
    assert len(names) >= 5
    assert not {"meal", "fridge", "cookbook", "knife", "oven", "stove", "north", "around"} & set(names)


def test_a_renaming_and_its_inverse_give_the_episode_back(golden: list[Trajectory]) -> None:
    names = _exchangeable(golden)
    mapping = shuffled(names, random.Random(3))
    assert any(name != other for name, other in mapping.items())
    back = {other: name for name, other in mapping.items()}
    for trajectory in golden:
        for role in Role:
            windows = windows_of(trajectory, segment(trajectory), Limits(), role)
            once = renamed(windows, mapping)
            for window, pieces in zip(windows, once, strict=True):
                assert [piece.target for piece in pieces] == [piece.target for piece in window.pieces]
                window.pieces[:] = pieces
            twice = renamed(windows, back)
            fresh = windows_of(trajectory, segment(trajectory), Limits(), role)
            assert twice == [window.pieces for window in fresh]


@given(st.lists(st.text(min_size=1), unique=True), st.integers())
def test_shuffles_are_permutations(names: list[str], seed: int) -> None:
    mapping = shuffled(names, random.Random(seed))
    assert sorted(mapping) == sorted(mapping.values()) == sorted(names)
