"""Renaming: a permutation of instances that keeps everything else, and can be taken back."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.prompts import Role
from flywheel.distill.batching.examples import flat_windows, windows_of
from flywheel.distill.data.renaming import exchangeable_names, exchangeable_values, renamed, renumbered, shuffled
from flywheel.filters.segments import segment
from flywheel.messages import Message, ToolCall, action_of
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
    mapping = shuffled([names], random.Random(3))
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
    mapping = shuffled([names], random.Random(seed))
    assert sorted(mapping) == sorted(mapping.values()) == sorted(names)


def _session(like: Trajectory, number: int, item: str, street: str) -> Trajectory:
    """An agent reads of an order and changes its address; the reason is its own."""
    said = [
        (f'["{item}"] of customer {number}', "look", f'{{"item": "{item}", "topic": "addresses"}}'),
        (f"to 12 {street}", "move", f'{{"customer": {number}, "address": "12 {street}"}}'),
    ]
    steps = []
    for index, (observation, tool, arguments) in enumerate(said):
        output = Message("assistant", tool_calls=(ToolCall(f"c{index}", tool, arguments),))
        seen = (Message("user", observation),)
        step = replace(like.steps[index], observation=observation, action=action_of(output))
        steps.append(replace(step, inputs=seen, output=output, thought="", document="", valid_actions=None))
    return replace(like, environment="gateway/shop", steps=tuple(steps), length=2, tools="[]", system=None)


def test_what_calls_copy_from_what_was_read_is_exchangeable_by_argument(golden: list[Trajectory]) -> None:
    sessions = [_session(golden[0], 401, "lamp", "Elm Street"), _session(golden[0], 555, "tent", "Mill Road")]
    assert exchangeable_values(sessions) == ([["Elm Street", "Mill Road"], ["lamp", "tent"]], ["12"])


@given(seed=st.integers())
def test_copied_numbers_are_others_everywhere_at_once(golden: list[Trajectory], seed: int) -> None:
    (window,) = flat_windows(_session(golden[0], 401, "lamp", "Elm Street"), Limits())
    assert renumbered([window], ["12"], random.Random(seed)).keys() == {"401"}, "every session has that number"
    mapping = renumbered([window], [], random.Random(seed))
    assert mapping.keys() == {"401", "12"}
    assert [len(other) for other in mapping.values()] == [len(number) for number in mapping]
    text = "".join(piece.text for piece in renamed([window], mapping)[0])
    assert "401" not in text and text.count(mapping["401"]) == 2
