"""Oracles for one level: a planner that knows the right subgoals, an executor that knows the right actions.

With one level replaced, what is left of a hierarchical student's failures is the other level's. What oracles know
comes from finished expert episodes, never from the environment's privileged door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flywheel.agents.contexts.prompts import SubgoalOutcome
from flywheel.agents.inference.decoding import Fault
from flywheel.agents.policy import Decision, Past, Turn
from flywheel.agents.student import HierarchicalAgent
from flywheel.text import subgoal_name
from flywheel.trajectory import Task


@dataclass(frozen=True, slots=True)
class Solution:
    """An expert's solution of a task: subgoals in order, each with its actions."""

    subgoals: tuple[str, ...]
    actions: tuple[tuple[str, ...], ...]


class OraclePlanner(HierarchicalAgent):
    """The student's executor under the expert's subgoals; one that timed out is given again."""

    def __init__(self, student: HierarchicalAgent, solutions: Mapping[str, Solution]) -> None:
        student.lend(self)
        self.policy_id = f"oracle-planner-{student.policy_id}"
        self._solutions = solutions
        self._left: dict[int, list[str]] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        super().begin(slot, task, attempt, past)
        self._left[slot] = list(reversed(self._solutions[task.task_id].subgoals))

    def _name(self, turns: Sequence[Turn]) -> list[tuple[str | Fault, int]]:
        choices: list[tuple[str | Fault, int]] = []
        for turn in turns:
            left = self._left[turn.slot]
            if self._episodes[turn.slot].outcome is SubgoalOutcome.DONE and len(left) > 1:
                left.pop()
            choices.append((left[-1], 0))
        return choices


class OracleExecutor(HierarchicalAgent):
    """The expert's actions under the student's subgoals. A subgoal that is not the expert's next one is tried as an
    action, if the environment takes it for one; otherwise the episode ends: the planner asked for the wrong thing."""

    def __init__(self, student: HierarchicalAgent, solutions: Mapping[str, Solution]) -> None:
        student.lend(self)
        self.policy_id = f"oracle-executor-{student.policy_id}"
        self._solutions = solutions
        self._parts: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
        self._actions: dict[int, list[str]] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        super().begin(slot, task, attempt, past)
        solution = self._solutions[task.task_id]
        self._parts[slot] = list(zip(solution.subgoals, solution.actions, strict=True))[::-1]
        self._actions[slot] = []

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        for turn in turns:
            context = self._episodes[turn.slot].context
            context.observe(turn.observation)
            if not context.must_plan and not self._actions[turn.slot]:
                context.finish(SubgoalOutcome.DONE)
        unplanned = self._plan([turn for turn in turns if self._episodes[turn.slot].context.must_plan])
        return [unplanned.get(turn.slot) or self._do(turn) for turn in turns]

    def _do(self, turn: Turn) -> Decision:
        context, actions, parts = self._episodes[turn.slot].context, self._actions[turn.slot], self._parts[turn.slot]
        fresh = context.steps_in_segment == 0
        if fresh and parts and parts[-1][0] == context.subgoal:
            actions.extend(reversed(parts.pop()[1]))
        elif fresh:
            valid = turn.observation.valid_actions or ()
            actions.extend([action for action in valid if subgoal_name(action) == context.subgoal][:1])
        if not actions:
            return Decision(None)
        action = actions.pop()
        context.act(turn.observation, action)
        return Decision(action, subgoal=context.subgoal, new_subgoal=fresh)
