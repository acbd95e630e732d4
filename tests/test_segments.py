"""Grounded segmentation: contiguous, complete, named after what was achieved."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flywheel.filters.segments import EXPLORE, segment
from flywheel.text import subgoal_name
from flywheel.trajectory import Trajectory


def _check_cover(one: Trajectory) -> None:
    segments = segment(one)
    assert segments[0].start == 0
    assert segments[-1].end == one.length
    assert all(left.end == right.start for left, right in pairwise(segments))
    assert all(part.completed for part in segments[:-1])
    assert [part.index for part in segments] == list(range(len(segments)))


def test_segments_cover_every_step_once(
    golden: list[Trajectory], noisy: list[Trajectory], aimless: list[Trajectory]
) -> None:
    for trajectory in [*golden, *noisy, *aimless]:
        _check_cover(trajectory)


def test_completed_subgoals_end_with_the_deed_they_name(golden: list[Trajectory]) -> None:
    for trajectory in golden:
        for part in segment(trajectory):
            assert part.completed
            if part.subgoal != EXPLORE:
                assert subgoal_name(trajectory.steps[part.end - 1].action) == part.subgoal


def test_every_reward_falls_at_the_end_of_a_segment(golden: list[Trajectory]) -> None:
    for trajectory in golden:
        ends = {part.end - 1 for part in segment(trajectory)}
        assert {step.index for step in trajectory.steps if step.reward > 0} <= ends
        assert sum(part.reward for part in segment(trajectory)) == sum(step.reward for step in trajectory.steps)


def test_the_recipe_is_a_subgoal_and_things_unseen_are_explored(golden: list[Trajectory]) -> None:
    names = [part.subgoal for trajectory in golden for part in segment(trajectory)]
    assert names.count("read cookbook") == len(golden)
    assert names.count("eat meal") == len(golden)
    assert EXPLORE in names


def test_the_last_action_of_a_run_that_tells_success_alone_is_no_subgoal(golden: list[Trajectory]) -> None:
    last = golden[0].length - 1
    steps = tuple(
        replace(step, progress=float(step.index == last), reward=float(step.index == last), document="")
        for step in golden[0].steps
    )
    assert [
        (part.start, part.end, part.subgoal, part.completed) for part in segment(replace(golden[0], steps=steps))
    ] == [(0, last + 1, EXPLORE, True)]


words = st.sampled_from(["carrot", "red onion", "fridge", "oven", "knife"])


@given(words, st.sampled_from(["in", "on", "with", "using"]), words)
def test_a_subgoal_names_the_instrument_before_the_object(thing: str, by: str, instrument: str) -> None:
    assert subgoal_name(f"cook {thing} {by} {instrument}") == f"cook {by} {instrument} {thing}"
    assert subgoal_name(f"take {thing}") == f"take {thing}"
    assert subgoal_name(f"take {thing} from {instrument}") == f"take {thing} from {instrument}"


def test_a_thing_is_seen_by_its_whole_name(golden: list[Trajectory]) -> None:
    """Its words alone, one in the name of this and one in that, are not it: the agent still explores."""
    views = ("A red apple.", "A red apple and a potato.", "A red potato.", "Done.")
    actions = ("open fridge", "move north", "take red potato", "wait")
    steps = tuple(
        replace(step, observation=view, action=action, progress=0.5 * (step.index >= 2), document="")
        for step, view, action in zip(golden[0].steps, views, actions, strict=False)
    )
    parts = segment(replace(golden[0], steps=steps))
    assert [(part.start, part.end, part.subgoal) for part in parts[:2]] == [(0, 2, EXPLORE), (2, 3, "take red potato")]
