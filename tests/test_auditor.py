"""The auditor: it sees what was seen and not what was done, refuses at most three times, and is told in the record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flywheel.agents.chat import ChatPolicy
from flywheel.agents.scripted import Expert, Mistakes
from flywheel.config.agents import ChatConfig
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import Observation, World
from flywheel.filters.batch import batch_of
from flywheel.filters.verifiers.replay import Replay
from flywheel.rollouts.auditor import UNREADABLE, ChatAuditor, evidence, understood
from flywheel.rollouts.engine import MAX_REFUSALS, Rollout, Ruling, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.rollouts.play import RolloutHooks, play
from flywheel.trajectory import Split, StopReason, Task, Trajectory
from tests.corridor import CorridorWorld, task_of
from tests.servers import chat_server

ORIGIN = Origin(1, "collect", "test")
DECLARED = {"numLocations": 2, "numIngredients": 2, "numDistractorItems": 2, "includeDoors": 0, "declare": 1}


@pytest.fixture(scope="module")
def kitchen() -> Iterator[World]:
    with open_world("cookingworld", canonical(DECLARED)) as world:
        yield world


@dataclass
class Believing:
    """Believes what it sees: that the meal was eaten, or not."""

    asked: int = 0

    async def audit(self, task: Task, seen: Sequence[Observation]) -> Ruling:
        self.asked += 1
        eaten = any("delicious" in observation.feedback for observation in seen)
        return Ruling("" if eaten else "The meal was not eaten.", tokens=10)

    async def close(self) -> None:
        pass


@dataclass
class Never:
    asked: list[str] = field(default_factory=list)

    async def audit(self, task: Task, seen: Sequence[Observation]) -> Ruling:
        self.asked.append(task.task_id)
        return Ruling("No.")

    async def close(self) -> None:
        pass


def played(world: World, policy: Any, auditor: Any, count: int = 16) -> list[Trajectory]:
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 0, count)]
    rollout = Rollout(policy, jobs, in_process(world, 4), budget=Budget(60), origin=ORIGIN, auditor=auditor)
    return sorted(rollout, key=lambda trajectory: trajectory.seed)


def test_premature_endings_are_refused_and_the_task_goes_on(kitchen: World) -> None:
    hasty = Expert(kitchen, Mistakes(early_stop=0.1))
    alone, watched = played(kitchen, hasty, None), played(kitchen, hasty, Believing())
    assert sum(trajectory.success for trajectory in alone) < sum(trajectory.success for trajectory in watched)
    refused = [step for trajectory in watched for step in trajectory.steps if step.audit]
    assert refused and {step.audit for step in refused} == {"The meal was not eaten."}
    assert all(said.integrity == 1 for said in Replay(kitchen).verify(batch_of(watched)))


def test_it_refuses_three_times_and_then_lets_go(kitchen: World) -> None:
    auditor = Never()
    for one in played(kitchen, Expert(kitchen), auditor, 3):
        assert auditor.asked.count(one.task_id) == MAX_REFUSALS == 3
        assert one.stop_reason in (StopReason.SUCCESS, StopReason.NO_ACTION)


def test_a_chat_model_hears_the_reason_and_may_not_just_repeat_itself() -> None:
    heard: list[str] = []

    def answer(request: dict[str, Any], key: str) -> tuple[int, str]:
        heard.append(request["messages"][-1]["content"])
        return 200, "Action: stop" if len(heard) == 3 else "Action: right"

    class Once(Never):
        async def audit(self, task: Task, seen: Sequence[Observation]) -> Ruling:
            return Ruling("You are not at the door.", tokens=50)

    with chat_server(answer) as url:
        policy = ChatPolicy(ChatConfig(base_url=url, model="m"))
        workers = in_process(CorridorWorld(), 1)
        (one,) = Rollout(policy, [Job(task_of(1))], workers, budget=Budget(20), origin=ORIGIN, auditor=Once())
    assert one.success
    assert [step.index for step in one.steps if step.audit] == [2]
    assert "[audit] You are not at the door." in heard[3]
    assert one.steps[2].prompt_tokens == 250, "the word that was not believed is paid for too, and the ruling on it"


def test_it_is_not_shown_what_was_done() -> None:
    seen = [Observation(f"room {n}", f"event {n}", document="recipe" if n == 1 else "") for n in range(100)]
    text = evidence(task_of(1), seen)
    assert "Walk to the door." in text and "recipe" in text and "room 99" in text and "event 99" in text
    assert text.count("\n") < 90
    assert "right" not in text


@pytest.mark.parametrize(
    ("words", "solved"),
    [
        ('{"solved": true, "reasoning": "the door is open"}', True),
        ('Sure!\n```json\n{"solved": false, "reasoning": "no"}\n```', False),
        ('{"solved": "partial"}', "partial"),
        ('{"solved": "yes"}', None),
        ('{"solved": 1}', None),
        ('{"solved": true, "reasoning": "the pot {of soup} is eaten"}', True),
        ('First {"solved": false}, but then {"solved": true}', True),
        ("It is solved.", None),
        ('{"solved": true', None),
        ("", None),
    ],
)
def test_rulings_in_many_dresses(words: str, solved: object) -> None:
    ruling = understood(words)
    assert (ruling.solved if ruling else None) == solved


def test_what_cannot_be_read_is_not_done_and_everything_is_counted(kitchen: World) -> None:
    words = iter(["Looks fine to me.", '{"solved": "partial", "reasoning": "eat it"}', '{"solved": true}'])
    told: list[dict[str, Any]] = []

    def answer(request: dict[str, Any], key: str) -> tuple[int, str]:
        told.append(request)
        return 200, next(words)

    with chat_server(answer) as url:
        auditor = ChatAuditor(ChatConfig(base_url=url, model="m", price_prompt=1.0, price_completion=0.0))
        (one,) = played(kitchen, Expert(kitchen), auditor, 1)
    assert (auditor.record.rulings, auditor.record.refusals, auditor.record.unreadable) == (3, 2, 1)
    assert one.tokens == 3 * 107
    assert one.cost == pytest.approx(3 * 100 / 1e6)
    shown = json.dumps(told[0]["messages"])
    assert "You eat the meal" in shown and "take knife" not in shown
    assert one.stop_reason is not StopReason.INFRASTRUCTURE
    assert UNREADABLE.startswith("The auditor's answer could not be read")


def test_refusals_are_in_the_lake(kitchen: World, lake: Lake) -> None:
    settings = load(
        Path(__file__).parents[1] / "configs" / "smoke.toml",
        [f"data_dir={lake.root}", f"environment.parameters={{{', '.join(f'{k}={v}' for k, v in DECLARED.items())}}}"],
    )
    jobs = [Job(task) for task in kitchen.tasks(Split.TRAIN, 0, 8)]
    hasty = Expert(kitchen, Mistakes(early_stop=0.2))
    play(settings, lake, kitchen, hasty, jobs, ORIGIN, hooks=RolloutHooks(Believing()))
    assert lake.sql("select count(*) as n from steps where audit <> ''").to_pylist()[0]["n"] > 0
