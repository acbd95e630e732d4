"""Oracle ablation: each level replaced in turn says which one fails; two oracles together solve everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.agents.oracle import OracleExecutor, OraclePlanner
from flywheel.agents.policy import Turn
from flywheel.agents.scripted import Expert
from flywheel.agents.student import HierarchicalAgent
from flywheel.cli.main import app
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.protocol import World
from flywheel.errors import PolicyError
from flywheel.evaluation.oracle_ablation import solution_of
from flywheel.filters.curate import curate
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import load_policy
from flywheel.trajectory import Split, Trajectory
from tests.conftest import Play

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"


class BothLevels(OracleExecutor):
    """Oracles at both levels."""

    def _name(self, turns: Sequence[Turn]) -> list[tuple[str, int]]:
        return [(self._parts[turn.slot][-1][0], 0) for turn in turns]


@pytest.fixture
def student(smoke: Config, lake: Lake, golden: list[Trajectory]) -> HierarchicalAgent:
    lake.append(golden, "golden")
    curate(smoke, lake)
    card = distill(smoke, lake, "hierarchical", 1)
    found = load_policy(policy_directory(lake, card.policy_id))
    assert isinstance(found, HierarchicalAgent)
    return found


def test_oracles_at_both_levels_solve_what_the_expert_solves(
    student: HierarchicalAgent, world: World, play: Play
) -> None:
    expert = play(Expert(world), 6, split=Split.DEV)
    solutions = {trajectory.task_id: solution_of(trajectory) for trajectory in expert}
    solved = play(BothLevels(student, solutions), 6, split=Split.DEV)
    assert [trajectory.success for trajectory in solved] == [True] * 6
    by_task = {trajectory.task_id: trajectory for trajectory in expert}
    for one in solved:
        assert [step.action for step in one.steps] == [step.action for step in by_task[one.task_id].steps]


def test_an_oracle_planner_names_the_experts_subgoals_in_order(
    student: HierarchicalAgent, world: World, play: Play
) -> None:
    solutions = {trajectory.task_id: solution_of(trajectory) for trajectory in play(Expert(world), 6, split=Split.DEV)}
    for one in play(OraclePlanner(student, solutions), 6, split=Split.DEV):
        named = list(dict.fromkeys(step.subgoal for step in one.steps))
        wanted = list(dict.fromkeys(solutions[one.task_id].subgoals))
        assert named == wanted[: len(named)]


def test_the_command_and_a_student_without_levels(smoke: Config, lake: Lake, student: HierarchicalAgent) -> None:
    call = ["ablate", str(SMOKE), student.policy_id, "--set", f"data_dir={lake.root}", "--json"]
    before = lake.snapshot()
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["tasks"] == 6
    assert found["weaker"] in ("planner", "executor", "neither")
    assert lake.snapshot() == before
    flat = distill(smoke, lake, "flat", 1)
    refused = CliRunner().invoke(app, [*call[:2], flat.policy_id, *call[3:]])
    assert isinstance(refused.exception, PolicyError)
