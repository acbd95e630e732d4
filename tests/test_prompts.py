"""What a student reads: the same bytes in training and in rollouts, bounded at any horizon, free of secrets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from flywheel.agents.contexts.history import FlatContext, HierarchicalContext, Limits
from flywheel.agents.contexts.language import MarkerLanguage
from flywheel.agents.contexts.memory import Memory
from flywheel.agents.contexts.prompts import (
    ACT,
    DONE,
    MOST_IN_VIEW,
    RESTATED,
    SUBGOAL,
    TASK,
    Piece,
    Role,
    SubgoalOutcome,
    lines_in_view,
    restated,
)
from flywheel.agents.inference.language_model import LocalLanguageModel
from flywheel.agents.policy import Decoding, Policy
from flywheel.agents.student import FlatAgent, HierarchicalAgent
from flywheel.config.student import StudentConfig
from flywheel.distill.batching.examples import Example, example, windows_of
from flywheel.environments.protocol import Observation, World
from flywheel.filters.segments import segment
from flywheel.policies.models import new_model
from flywheel.policies.tokenizer import named_things, train_tokenizer
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Segment, Split, Trajectory

LIMITS = Limits(window_steps=5, planner_window=3, segment_steps=4)
TINY = StudentConfig(hidden=32, layers=1, heads=2, vocabulary=600)


@pytest.fixture(scope="module")
def tokenizer(golden: list[Trajectory]) -> PreTrainedTokenizerBase:
    windows = [
        w for trajectory in golden for role in Role for w in windows_of(trajectory, segment(trajectory), LIMITS, role)
    ]
    texts = [piece.spelling for window in windows for piece in window.pieces]
    return train_tokenizer(texts, named_things(step.action for trajectory in golden for step in trajectory.steps), 600)


class Spy(LocalLanguageModel):
    """Remembers what the model was given to read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        super().__init__(new_model(TINY, tokenizer, seed), tokenizer, Decoding(temperature=1.0, seed=seed))
        self.read: list[tuple[int, ...]] = []

    def context(self, window, cue):  # type: ignore[no-untyped-def]
        ids = super().context(window, cue)
        self.read.append(tuple(ids))
        return ids


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.spelling for piece in pieces)


def _prefixes(examples: list[Example], cue: int) -> set[tuple[int, ...]]:
    """Everything a row says before one of the agent's turns."""
    return {
        tuple(row.ids_T[: position + 1].tolist())
        for row in examples
        for position in range(len(row.ids_T))
        if row.ids_T[position] == cue
    }


def test_a_flat_rollout_reads_exactly_what_its_training_row_says(
    world: World, origin: Origin, tokenizer: PreTrainedTokenizerBase
) -> None:
    spy = Spy(tokenizer, 0)
    episodes = _run(FlatAgent("flat", "f", "1", spy, LIMITS, Decoding()), world, origin)
    tokens = MarkerLanguage(tokenizer)
    rows = [
        example(w.pieces, tokens)
        for episode in episodes
        for w in windows_of(episode, segment(episode), LIMITS, Role.FLAT)
    ]
    assert len(spy.read) == sum(episode.length for episode in episodes)
    assert set(spy.read) == _prefixes(rows, tokenizer.convert_tokens_to_ids(ACT))


def test_a_hierarchical_rollout_reads_exactly_what_its_training_rows_say(
    world: World, origin: Origin, tokenizer: PreTrainedTokenizerBase
) -> None:
    planner, executor = Spy(tokenizer, 1), Spy(tokenizer, 2)
    episodes = _run(HierarchicalAgent("h", "h", "1", planner, executor, LIMITS, Decoding()), world, origin)
    tokens = MarkerLanguage(tokenizer)
    read: dict[Role, set[tuple[int, ...]]] = {Role.PLANNER: set(), Role.EXECUTOR: set()}
    for episode in episodes:
        for role, cue in ((Role.PLANNER, SUBGOAL), (Role.EXECUTOR, ACT)):
            rows = [example(w.pieces, tokens) for w in windows_of(episode, _as_lived(episode), LIMITS, role)]
            read[role] |= _prefixes(rows, tokenizer.convert_tokens_to_ids(cue))
    assert set(planner.read) == read[Role.PLANNER]
    assert set(executor.read) >= read[Role.EXECUTOR]
    assert len(set(executor.read) - read[Role.EXECUTOR]) == 0


def _as_lived(one: Trajectory) -> list[Segment]:
    """The segments that the planner's own subgoals drew, as the rollout recorded them."""
    starts = [step.index for step in one.steps if step.new_subgoal]
    ends = [*starts[1:], one.length]
    return [
        Segment(one.trajectory_id, index, start, end, one.steps[start].subgoal, True, 0.0, "lived")
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _run(policy: Policy, world: World, origin: Origin) -> list[Trajectory]:
    torch.manual_seed(0)
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 300, 6)]
    return list(Rollout(policy, jobs, in_process(world, 6), budget=Budget(23), origin=origin))


def test_contexts_stop_growing() -> None:
    def longest(steps: int) -> tuple[int, int]:
        context = HierarchicalContext("task", Limits())
        sizes = []
        for index in range(steps):
            place = f"room {index % 40}"
            context.observe(Observation(f"In {place}. There is a thing.", f"event {index}.", "", place, str(index)))
            if failed := context.failed:
                context.finish(failed)
            if context.must_plan:
                context.plan(Observation(f"In {place}.", location=place))
                context.adopt(Observation(f"In {place}.", location=place), "explore")
            context.act(Observation("", location=place), "move on")
            assert context.window is not None
            assert context.plan_window is not None
            sizes.append(len(text_of(context.window.pieces)) + len(text_of(context.plan_window.pieces)))
        return max(sizes[: steps // 2]), max(sizes[steps // 2 :])

    early, late = longest(1000)
    assert late <= early * 1.1


def test_a_fresh_window_still_knows_the_subgoal_in_force() -> None:
    context = HierarchicalContext("task", LIMITS)
    for step in range(6 * LIMITS.window_steps):
        seen = Observation(f"In room {step}.", location=f"room {step}", state_key=str(step))
        context.observe(seen)
        if context.failed:
            context.finish(SubgoalOutcome.TIMEOUT)
        if context.must_plan:
            context.plan(seen)
            context.adopt(seen, f"look for key {step}")
        assert context.window is not None
        said = text_of(context.window.pieces)
        assert f"{context.subgoal}<|end|>" in said
        assert said.partition(ACT)[0].count(SUBGOAL) == 1
        context.act(seen, "go on")


def test_an_executor_reads_of_its_own_subgoal_alone() -> None:
    context = HierarchicalContext("Cook.", Limits(), memory=Memory(documents=("Dice the onion.",)))
    for place, subgoal in enumerate(("take onion", "dice onion")):
        seen = Observation(f"Kitchen, {place}.", location="kitchen", state_key=str(place))
        context.observe(seen)
        if context.subgoal:
            context.finish(SubgoalOutcome.DONE)
        context.plan(seen)
        context.adopt(seen, subgoal)
        context.act(seen, subgoal)
    assert context.window is not None
    executor_text = text_of(context.window.pieces)
    assert executor_text.count(SUBGOAL) == 1
    assert "<|past|>take onion.<|view|>Kitchen, 1." in executor_text
    assert "Dice the onion." not in executor_text


def test_task_and_what_is_left_of_the_documents_stand_right_before_every_subgoal() -> None:
    recipe, asked = Observation("A table.", document="Dice the onion.\nFry the egg.", location="kitchen"), list[str]()
    context = HierarchicalContext("Cook.", Limits())
    context.observe(Observation("A hall.", location="hall"))
    context.plan(Observation("A hall.", location="hall"))
    context.adopt(Observation("A hall.", location="hall"), "read recipe")
    context.act(Observation("A hall.", location="hall"), "read recipe")
    for subgoal in ("dice onion", "eat"):
        context.observe(recipe)
        context.finish(SubgoalOutcome.DONE)
        planner_text = text_of(context.plan(recipe).pieces)
        context.adopt(recipe, subgoal)
        context.act(recipe, subgoal)
        asked.append(planner_text.rpartition("<|task|>Cook.")[2])
    assert asked == ["<|document|>Dice the onion.\nFry the egg.", "<|document|>Fry the egg."]


def test_what_the_documents_ask_for_and_the_view_shows_stands_last_until_it_is_done() -> None:
    recipe = "Ingredients:\nred onion\nonion\negg\nDice the red onion."
    seen = Observation("A Red Onion, and some eggs.", location="kitchen")
    context = HierarchicalContext("Cook.", Limits(), memory=Memory(documents=(recipe,)))
    context.observe(seen)
    assert text_of(context.plan(seen).pieces).endswith("<|in view|>red onion, onion")
    context.adopt(seen, "take red onion")
    context.act(seen, "take red onion")
    context.finish(SubgoalOutcome.STUCK)
    assert text_of(context.plan(seen).pieces).endswith("<|in view|>red onion, onion")
    context.adopt(seen, "take red onion")
    context.finish(SubgoalOutcome.DONE)
    assert text_of(context.plan(seen).pieces).endswith("<|document|>Ingredients:\negg\nDice the red onion.")
    book = "\n".join(f"line {number}" for number in range(1000))
    (piece,) = lines_in_view([book], book, [])
    assert piece.text.startswith("line 0, line 1")
    assert len(piece.text) < 2 * MOST_IN_VIEW


def test_what_is_done_of_a_list_in_the_task_is_not_restated() -> None:
    task = Piece("Settle the lines.\n- settle line 1\n- settle line 10\n- close it", marker=TASK)
    assert text_of(restated(task, [], ["settle line 10"])) == "<|task|>Settle the lines.\n- settle line 1\n- close it"
    done = ["settle the lines", "settle line 1", "settle line 10", "close it"]
    assert text_of(restated(task, [], done)) == f"<|task|>{task.text}"


def test_what_is_too_long_to_be_restated_is_read_once_a_window() -> None:
    book = "So it goes. " * RESTATED
    for long, short in (("Cook. " * RESTATED, "A note."), ("Cook.", book)):
        again = text_of(restated(Piece(long, marker=TASK), [short, "A card."]))
        assert ("A note." in again, "Cook." in again) == (short == "A note.", long == "Cook.")
        assert "A card." in again
        assert len(again) <= RESTATED + 100
    seen = Observation("A table.", location="kitchen")
    context = HierarchicalContext("Cook.", Limits(), memory=Memory(documents=(book,)))
    context.observe(seen)
    for _ in range(3):
        planner_text = text_of(context.plan(seen).pieces)
        context.adopt(seen, "wait")
        context.act(seen, "wait")
        context.finish(SubgoalOutcome.TIMEOUT)
    assert planner_text.count(book) == 1
    assert planner_text.count("<|task|>Cook.") == 3


def test_done_is_the_executors_own_word_and_injected_actions_are_not() -> None:
    context = FlatContext("task", Limits())
    context.observe(Observation("a"))
    context.act(Observation("a"), "noise", target=False)
    context.observe(Observation("b"))
    context.act(Observation("b"), "deed", target=True)
    assert context.window is not None
    assert [piece.spelling for piece in context.window.pieces if piece.target] == ["deed<|end|>"]
    assert DONE not in text_of(context.window.pieces)


def test_what_is_seen_anew_is_read_where_the_environment_answers_nothing() -> None:
    context = FlatContext("Walk.", Limits())
    context.observe(Observation("You are at 0."))
    context.act(Observation("You are at 0."), "right")
    window = context.observe(Observation("You are at 1."))
    assert text_of(window.pieces).endswith("<|view|>You are at 1.")
    context.act(Observation("You are at 1."), "wait")
    assert text_of(context.observe(Observation("You are at 1.")).pieces).endswith("<|feedback|>")
