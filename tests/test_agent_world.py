"""An agent of one's own as an environment: any policy answers it, and what is recorded is what students read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from flywheel.agents.contexts.history import FlatContext, Limits
from flywheel.agents.policy import Decision, Past, Turn
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import flat_windows
from flywheel.distill.stage import distill
from flywheel.distill.subgoals.segmentation import TOOLS, by_tools, segment_lake
from flywheel.environments.capabilities import MakesTasks
from flywheel.environments.catalog import open_configured
from flywheel.environments.protocol import Environment
from flywheel.errors import ConfigError, InfrastructureError
from flywheel.evaluation.evaluate import evaluate
from flywheel.evaluation.replay import replay, threshold
from flywheel.evaluation.simulated import Ending, simulate
from flywheel.filters.curate import curate
from flywheel.gateway.agents import agent_tasks, run_agent
from flywheel.messages import calls_of
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Split, StopReason, Task, Trajectory
from tests.door_agent import config_of, task_rows


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "door_agent", raising=False)
    return config_of(tmp_path, task_rows(16))


@pytest.fixture
def door(config: Config) -> Iterator[Environment]:
    with open_configured(config) as world:
        yield world.environments(1)[0]


def task_of(config: Config, **data: Any) -> Task:
    rows = task_rows(1, **data)
    config_of(Path.cwd(), rows)
    return agent_tasks(config, None, 0, 1)[0]


@dataclass
class Scripted:
    """Says the same words in every episode."""

    words: Sequence[str]
    name: str = "scripted"
    policy_id: str = "scripted-1"
    version: str = "1"
    said: dict[int, int] = field(default_factory=dict)

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        self.said[slot] = len(past)

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        decisions = [Decision(self.words[self.said[turn.slot]]) for turn in turns]
        for turn in turns:
            self.said[turn.slot] += 1
        return decisions


LOOK = 'look {"at": "[REDACTED:e-mail address 1]"}'
WORDS = (LOOK, 'open {"what": "door"}', "It is open.")


def played(config: Config, tasks: Sequence[Task], words: Sequence[str] = WORDS) -> list[Trajectory]:
    with open_configured(config) as world:
        jobs = [Job(task) for task in tasks]
        rollout = Rollout(
            Scripted(words), jobs, in_process(world, 2), budget=Budget(8), origin=Origin(1, "collect", "c")
        )
        return sorted(rollout, key=lambda trajectory: trajectory.task_name)


def test_its_requests_are_observations_and_answers_are_actions(config: Config, door: Environment) -> None:
    seen = door.reset(agent_tasks(config, Split.TRAIN, 0, 1)[0])
    assert seen.opens_task
    assert seen.text == "You open doors.\n\nLook at [REDACTED:e-mail address 1], then open the door."
    assert seen.messages is not None and [message.role for message in seen.messages] == ["system", "user"]
    step = door.step(LOOK)
    assert (step.observation.text, step.terminated) == ('{"seen": "door-0"}', False)
    ended = door.step("It is open.")
    assert (ended.terminated, ended.success, ended.reward) == (True, True, 1.0)


def test_text_that_calls_no_known_tool_is_said(config: Config, door: Environment) -> None:
    door.reset(agent_tasks(config, Split.TRAIN, 0, 1)[0])
    ended = door.step('burn {"what": "door"}')
    assert (ended.terminated, ended.success) == (True, False)


def test_an_agent_that_raises_has_failed_and_one_without_outcome_is_broken(config: Config, door: Environment) -> None:
    door.reset(task_of(config, raises=True))
    ended = door.step("Done.")
    assert (ended.success, ended.observation.text) == (False, "the agent raised KeyError: 'lost'")
    door.reset(task_of(config, unknown=True))
    with pytest.raises(InfrastructureError, match="returned no outcome"):
        door.step("Done.")
    with pytest.raises(InfrastructureError, match="the agent asked nothing"):
        door.reset(task_of(config, silent=True))


def test_a_run_that_is_left_is_stopped(config: Config, door: Environment) -> None:
    first, second = agent_tasks(config, Split.TRAIN, 0, 2)
    door.reset(first)
    assert "ann1" not in door.reset(second).text
    assert door.step(LOOK).observation.text == '{"seen": "door-1"}'


def test_it_makes_no_tasks_and_needs_an_agent(config: Config) -> None:
    with open_configured(config) as world:
        assert not isinstance(world, MakesTasks)
    nobody = config.model_copy(update={"agent": config.agent.model_copy(update={"run": ""})})
    with pytest.raises(ConfigError, match="gateway/doors is played by an agent; name yours"):
        open_configured(nobody)


def test_episodes_are_of_the_recorded_tasks_and_hold_their_messages(config: Config) -> None:
    tasks = agent_tasks(config, Split.TRAIN, 0, 4)
    trajectories = played(config, tasks)
    assert [trajectory.task_id for trajectory in trajectories] == [task.task_id for task in tasks]
    assert all(trajectory.stop_reason is StopReason.SUCCESS for trajectory in trajectories)
    first = trajectories[0]
    assert first.system == "You open doors."
    assert first.instruction == "Look at [REDACTED:e-mail address 1], then open the door."
    assert [step.action for step in first.steps] == list(WORDS)
    looked = first.steps[0].output
    assert looked is not None and first.steps[1].inputs is not None
    assert looked.tool_calls[0].id == first.steps[1].inputs[0].tool_call_id


def test_a_recorded_run_reads_like_a_played_one(config: Config, upstream: str) -> None:
    """What a student reads of a session that went through the gateway is what it reads when it plays, byte for byte."""
    recorded = config.model_copy(update={"gateway": config.gateway.model_copy(update={"upstream": upstream})})
    tasks = agent_tasks(recorded, Split.TRAIN, 0, 2)
    with Lake.of(recorded, create=True) as lake:
        run_agent(recorded, lake, tasks)
        ids = lake.sql("select trajectory_id from trajectories order by task_name")["trajectory_id"].to_pylist()
        records = lake.trajectories(ids)
    for record, task in zip(records, tasks, strict=True):
        (live,) = played(config, [task], [step.action for step in record.steps])
        assert calls_of(record.steps[0].action), record.steps
        windows = [flat_windows(trajectory, Limits(8)) for trajectory in (record, live)]
        assert [piece.spelling for piece in windows[0][0].pieces] == [piece.spelling for piece in windows[1][0].pieces]


def test_a_live_context_is_what_training_reads(config: Config, door: Environment) -> None:
    (task,) = agent_tasks(config, Split.TRAIN, 0, 1)
    context, seen = FlatContext(task.instruction, Limits(8)), door.reset(task)
    for word in WORDS:
        context.observe(seen)
        context.act(seen, word)
        seen = door.step(word).observation
    (window,) = flat_windows(played(config, [task])[0], Limits(8))
    assert context.window is not None
    assert [piece.spelling for piece in window.pieces] == [piece.spelling for piece in context.window.pieces]


def test_students_learn_from_recorded_runs_and_play_them(config: Config) -> None:
    with Lake.of(config, create=True) as lake:
        lake.append(played(config, agent_tasks(config, Split.TRAIN, 0, 6)), "collect")
        curate(config, lake)
        segment_lake(lake, TOOLS, by_tools, "true")
        for kind in ("flat", "hierarchical"):
            card = distill(config, lake, kind, 1)
            rate = evaluate(config, lake, card.policy_id, Split.DEV, 1)
            assert (rate.tasks, rate.broken) == (4, 0)
        calls = lake.sql(
            """select name, arguments from tool_calls join trajectories using (trajectory_id)
               where purpose = 'evaluate'"""
        ).to_pylist()
    assert {call["name"] for call in calls} <= {"look", "open"}


def test_segments_begin_where_a_tool_comes_round_again(config: Config) -> None:
    words = (LOOK, 'open {"what": "door"}', LOOK, LOOK, 'open {"what": "lid"}', "Done.")
    (trajectory,) = played(config, agent_tasks(config, Split.TRAIN, 0, 1), words)
    segments = by_tools(trajectory)
    assert all(segment.completed for segment in by_tools(replace(trajectory, success=None))), "as it was recorded"
    assert [segment.completed for segment in by_tools(replace(trajectory, success=False))] == [True, True, False]
    assert [(segment.start, segment.end, segment.subgoal) for segment in segments] == [
        (0, 2, "look door"),
        (2, 5, "look"),
        (5, 6, "answer"),
    ]


def test_a_replay_tells_where_a_policy_would_leave_the_record(config: Config) -> None:
    policy = Scripted((*WORDS, WORDS[-1]))
    with Lake.of(config, create=True) as lake:
        with pytest.raises(ConfigError, match="no verified session of gateway/doors is held out as dev"):
            replay(config, lake, policy, Split.DEV)
        tasks = agent_tasks(config, Split.DEV, 0, 4)
        for task, words in zip(tasks, [WORDS, WORDS, (WORDS[0], WORDS[1], WORDS[1], WORDS[2]), WORDS[1:]], strict=True):
            (trajectory,) = played(config, [task], words)
            lake.append([replace(trajectory, purpose="recorded")], "recorded")
        curate(config, lake)
        told = replay(config, lake, policy, Split.DEV)
        assert (told.sessions, told.answers) == (3, 10), "the fourth did not look, and is no example"
        assert told.same.value == pytest.approx(0.9)
        assert (told.whole_sessions, told.diverges_at) == (pytest.approx(2 / 3), 2)
        assert told.by_tool == {"": (3, 1.0), "look": (3, 1.0), "open": (4, 0.75)}
        assert told.by_confidence[0.0] == (1.0, pytest.approx(0.9), pytest.approx(0.596, abs=0.001))
        fewer = pytest.approx(1 / 3)
        assert told.endings == {"same calls": pytest.approx(2 / 3), "fewer calls": fewer, "left the record": 0.0}, (
            "one session opened twice"
        )
        assert threshold(told, 0.5) == 0.0
        with pytest.raises(ConfigError, match=r"at no confidence do 95% of scripted-1's answers agree .* at most 60%"):
            threshold(told, 0.95)


OTHER = (LOOK, 'open {"what": "lid"}', WORDS[2])
AGAIN = (LOOK, 'open {"what": "door"}', LOOK, WORDS[2])


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (WORDS, Ending.SAME_CALLS),
        ((WORDS[1], WORDS[0], WORDS[2]), Ending.SAME_CALLS),
        (('look { "at":"[REDACTED:e-mail address 1]" }', *WORDS[1:]), Ending.SAME_CALLS),
        (AGAIN, Ending.SAME_CALLS),
        ((WORDS[0], WORDS[2]), Ending.FEWER_CALLS),
        (OTHER, Ending.LEFT),
        ((LOOK,) * 20, Ending.LEFT),
    ],
)
def test_recorded_results_answer_recorded_calls_and_no_others(
    config: Config, words: Sequence[str], ending: Ending
) -> None:
    (session,) = played(config, agent_tasks(config, Split.DEV, 0, 1))
    assert simulate(Scripted(words), [session]) == [ending]


def lower_at(name: str, arguments: Any) -> Any:
    """Where to look is the same in capitals."""
    return {key: value.lower() if key == "at" else value for key, value in arguments.items()}


def broken(name: str, arguments: Any) -> Any:
    raise KeyError(name)


def normalised_by(config: Config, function: str) -> Config:
    evaluate = config.evaluate.model_copy(update={"normalise": f"{__name__}:{function}"})
    return config.model_copy(update={"evaluate": evaluate})


def test_arguments_are_equal_where_the_user_says_that_they_mean_the_same(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[lower_at.__module__])
    policy = Scripted((LOOK.upper().replace("LOOK", "look").replace("AT", "at"), *WORDS[1:], WORDS[-1]))
    with Lake.of(config, create=True) as lake:
        (session,) = played(config, agent_tasks(config, Split.DEV, 0, 1))
        lake.append([replace(session, purpose="recorded")], "recorded")
        curate(config, lake)
        assert replay(config, lake, policy, Split.DEV).same.value == pytest.approx(2 / 3)
        told = replay(normalised_by(config, "lower_at"), lake, policy, Split.DEV)
        assert told.same.value == 1.0 and told.endings["same calls"] == 1.0
        with pytest.raises(ConfigError, match="broken fails on a call of look"):
            replay(normalised_by(config, "broken"), lake, policy, Split.DEV)
