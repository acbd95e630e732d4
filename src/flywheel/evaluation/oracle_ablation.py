"""Which level fails: a hierarchical student with its planner, or its executor, replaced by an oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flywheel.agents.oracle import OracleExecutor, OraclePlanner, Solution
from flywheel.agents.scripted import Expert
from flywheel.agents.student import HierarchicalAgent
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import open_configured
from flywheel.errors import ConfigError, PolicyError
from flywheel.evaluation.evaluate import held_out_tasks
from flywheel.evaluation.statistics import Interval, rate
from flywheel.filters.segments import SOURCE as MILESTONES
from flywheel.filters.segments import segment
from flywheel.policies.factory import make_policy
from flywheel.rollouts.play import rehearse
from flywheel.trajectory import Split, StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class OracleAblation:
    """Success of the student, of its executor under an oracle planner, and of its planner over an oracle executor, on
    tasks that the expert solves."""

    tasks: int
    student: Interval
    oracle_planner: Interval
    oracle_executor: Interval

    @property
    def weaker(self) -> str:
        """The level whose replacement helps more."""
        planner, executor = self.oracle_planner.value, self.oracle_executor.value
        return "neither" if planner == executor else "planner" if planner > executor else "executor"


def ablate(
    config: Config, lake: Lake, name: str, iteration: int, progress: Callable[[int], None] = lambda done: None
) -> OracleAblation:
    """Play an iteration's dev tasks three times. Nothing of it is stored: oracles are no policies.

    Raises `PolicyError` for a student without levels, `ConfigError` for one that learned other subgoals.
    """
    if config.train.segments != MILESTONES:
        raise ConfigError(
            f"oracles name subgoals as {MILESTONES} does, and this student learned {config.train.segments}"
        )
    with open_configured(config) as world:
        student = make_policy(config, lake, world, name)
        if not isinstance(student, HierarchicalAgent):
            raise PolicyError(f"{student.policy_id} has no levels to replace; name a hierarchical student")
        tasks = held_out_tasks(config, world, Split.DEV, iteration)
        expert = [
            trajectory for trajectory in rehearse(config, world, Expert(world), tasks, "evaluate") if trajectory.success
        ]
        progress(len(tasks))
        solutions = {trajectory.task_id: solution_of(trajectory) for trajectory in expert}
        solved = [task for task in tasks if task.task_id in solutions]
        if not solved:
            raise PolicyError("the expert solves none of these tasks; raise environment.max_steps")
        rates = []
        for policy in (student, OraclePlanner(student, solutions), OracleExecutor(student, solutions)):
            played = rehearse(config, world, policy, solved, "evaluate")
            whole = [trajectory for trajectory in played if trajectory.stop_reason is not StopReason.INFRASTRUCTURE]
            rates.append(rate(sum(bool(trajectory.success) for trajectory in whole), len(whole)))
            progress(len(tasks))
    return OracleAblation(len(solved), *rates)


def solution_of(trajectory: Trajectory) -> Solution:
    """Subgoals and actions of a finished episode, by its segments."""
    parts = segment(trajectory)
    actions = tuple(tuple(step.action for step in trajectory.steps[part.start : part.end]) for part in parts)
    return Solution(tuple(part.subgoal for part in parts), actions)
