"""Is a generated task worth playing? Its solution must solve it; doing nothing, or something else, must not."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.environments.capabilities import solver
from flywheel.environments.protocol import World
from flywheel.trajectory import Task


def refusal(world: World, task: Task, others: Sequence[Task] = ()) -> str:
    """Why a task should not be taken; empty where nothing speaks against it. `others`: tasks whose solutions must not
    solve it. A solution's last action is what ends the task."""
    facts = solver(world, "a check of tasks").facts
    solution = facts(task).gold_actions
    if not _solves(world, task, solution):
        return "its own solution does not solve it"
    if _solves(world, task, solution[-1:]):
        return "doing nothing solves it"
    if _solves(world, task, [*solution[: len(solution) // 2], solution[-1]]):
        return "half of its solution solves it"
    wrong = next((other for other in others if _solves(world, task, facts(other).gold_actions)), None)
    return f"the solution of {wrong.name} solves it" if wrong else ""


def _solves(world: World, task: Task, actions: Sequence[str]) -> bool:
    (environment, *_) = world.environments(1)
    environment.reset(task)
    for action in actions:
        transition = environment.step(action)
        if transition.terminated:
            return transition.success
    return False
