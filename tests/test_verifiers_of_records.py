"""Verifiers without a world: a program of the user's, and an outcome read from any field of the record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.privileged import Facts, Milestone
from flywheel.errors import ConfigError
from flywheel.filters.batch import batch_of
from flywheel.filters.curate import curate
from flywheel.filters.verifiers.outcome import Outcome
from flywheel.filters.verifiers.privileged import Privileged
from flywheel.filters.verifiers.program import Program
from flywheel.trajectory import Item, Task, Trajectory, Verdict


def is_short(trajectory: Trajectory) -> bool:
    return trajectory.length < 20


def how_short(trajectory: Trajectory) -> float:
    return 1 / max(trajectory.length, 1)


def says_it_all(trajectory: Trajectory) -> Verdict:
    return Verdict("", "", "", "", 80.0, 0.5, 75.0, 0.75, True, 0.9, (Item("half", 100.0, 0.8, "step 3"),), "raw")


def says_nonsense(trajectory: Trajectory) -> Any:
    return "very well" if trajectory.seed % 2 else 7


def raises_for_some(trajectory: Trajectory) -> bool:
    return bool(1 // trajectory.seed)


HERE = "tests.test_verifiers_of_records"


def test_a_program_judges(golden: list[Trajectory]) -> None:
    batch = batch_of(golden)
    verdicts = Program(verify=f"{HERE}:is_short").verify(batch)
    assert [verdict.passed for verdict in verdicts] == [trajectory.length < 20 for trajectory in golden]
    half = Program(verify=f"{HERE}:how_short", threshold=0.05).verify(batch)
    assert [verdict.completion for verdict in half] == pytest.approx([100 / trajectory.length for trajectory in golden])
    assert [verdict.passed for verdict in half] == [trajectory.length <= 20 for trajectory in golden]


def test_a_program_may_give_a_whole_verdict_but_not_pass_what_its_numbers_fail(golden: list[Trajectory]) -> None:
    (verdict,) = Program(verify=f"{HERE}:says_it_all").verify(batch_of(golden[:1]))
    assert (verdict.trajectory_id, verdict.verifier, verdict.passed) == (golden[0].trajectory_id, "program", False)
    assert (verdict.completion, verdict.integrity, verdict.items[0].evidence) == (80.0, 0.5, "step 3")


def test_another_text_of_the_program_makes_other_verdicts() -> None:
    one, other = Program(verify=f"{HERE}:is_short"), Program(verify=f"{HERE}:how_short")
    assert json.loads(one.arguments)["text"] != json.loads(other.arguments)["text"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"verify": "is_short"}, "write module:object"),
        ({"verify": f"{HERE}:nobody"}, "has no nobody"),
        ({"verify": "builtins:len"}, "is no function of a file"),
        ({"verify": f"{HERE}:is_short", "threshold": 2}, "a score lies in"),
    ],
)
def test_programs_at_fault_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Program(**arguments)


@pytest.mark.parametrize(
    ("program", "says"), [("says_nonsense", "the program says"), ("raises_for_some", "ZeroDivisionError")]
)
def test_a_program_that_fails_on_a_record_puts_it_into_quarantine_and_no_other(
    smoke: Config, lake: Lake, golden: list[Trajectory], program: str, says: str
) -> None:
    lake.append(golden, "golden")
    verifiers = [{"name": "program", "arguments": {"verify": f"{HERE}:{program}"}}]
    settings = smoke.curate.model_dump() | {"verifiers": verifiers, "workers": 1}
    config = smoke.model_copy(update={"curate": type(smoke.curate).model_validate(settings)})
    curate(config, lake)
    rows = lake.sql("select seed, route, route_reason from trajectories order by seed").to_pylist()
    broken = [row for row in rows if row["route"] == "quarantine"]
    assert broken
    assert all(says in row["route_reason"] for row in broken)
    if program == "raises_for_some":
        assert [row["seed"] for row in broken] == [0]


def test_an_outcome_is_read_from_any_field(golden: list[Trajectory]) -> None:
    graded = [
        replace(golden[0], extra=json.dumps({"chat": {"grade": 4.5}})),
        replace(golden[1], extra=json.dumps({"chat": {"grade": "2"}})),
        replace(golden[2], extra=json.dumps({"chat": {}})),
        replace(golden[3], extra=None),
        replace(golden[4], extra=json.dumps({"chat": {"grade": True}})),
        replace(golden[5], extra=json.dumps({"chat": {"grade": -1}})),
    ]
    verdicts = Outcome(field="extra", path="$.chat.grade", at_least=4).verify(batch_of(graded))
    assert [verdict.completion for verdict in verdicts] == [100, 50, 0, 0, 25, 0]
    assert [verdict.passed for verdict in verdicts] == [True, False, False, False, False, False]
    assert [verdict.confidence for verdict in verdicts] == [1, 1, 0, 0, 1, 1]
    rewarded = Outcome(field="total_reward", at_least=0.5).verify(batch_of(golden))
    assert all(verdict.passed for verdict in rewarded)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"field": "steps"}, "there is no field 'steps'"),
        ({"path": "$.a"}, "path leads into a field"),
        ({"field": "score", "at_least": 0}, "at_least must be above 0"),
    ],
)
def test_outcomes_at_fault_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Outcome(**arguments)


class Knows:
    """A world whose milestones are marks of progress, states and functions, and no actions."""

    def __init__(self, milestones: tuple[Milestone, ...]) -> None:
        self._facts = Facts((), milestones, "canary")

    def environments(self, count: int) -> list[Any]:
        return []

    def facts(self, task: Task) -> Facts:
        return self._facts


def test_milestones_are_predicates_over_what_happened(golden: list[Trajectory]) -> None:
    """Whoever gets there in another way has got there."""
    run = golden[0]
    milestones = (
        Milestone("half way", "", 40, progress=0.5),
        Milestone("second state", "", 30, state_key=run.steps[1].state_key),
        Milestone("says something", "", 20, reached=lambda trajectory: 2 if trajectory.length > 2 else None),
        Milestone("elsewhere", "", 10, state_key="nowhere"),
    )
    (verdict,) = Privileged(Knows(milestones)).verify(batch_of([run]))
    assert verdict.completion == 90
    evidence = {item.name: item.evidence for item in verdict.items[:4]}
    place = next(step.index for step in run.steps if (step.progress or 0) >= 0.5)
    assert evidence == {
        "half way": f"half way: step {place}",
        "second state": "second state: step 0",
        "says something": "says something: step 2",
        "elsewhere": "elsewhere: never reached",
    }
