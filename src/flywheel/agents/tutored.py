"""The student begins, the teacher finishes: on-policy states with a teacher's labels.

A DAgger-style mixture (Ross, Gordon & Bagnell 2011, arXiv 1011.0686; by stretches rather than steps, as in
AggreVaTe, arXiv 1406.5979): the student acts for a random number of steps, then the expert takes over and finds its
way from wherever the student has led. The student's own steps teach only where the expert would have done the same;
the expert's recovery is what it is meant to learn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from flywheel.agents.policy import Decision, Policy, Turn
from flywheel.environments.protocol import World
from flywheel.trajectory import Task, digest


class Tutored:
    """A student under an expert's eyes. `longest`: the most steps that the student acts."""

    def __init__(self, world: World, student: Policy, *, longest: int, seed: int = 0) -> None:
        self.name = "tutored"
        self.policy_id = f"tutored-{digest('tutored', student.policy_id, student.version, longest, seed, size=4)}"
        self.version = "1"
        self._world, self._student, self._longest, self._seed = world, student, longest, seed
        self._plans: dict[int, list[str]] = {}
        self._left: dict[int, int] = {}

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        self._student.begin(slot, task, attempt)
        self._plans[slot] = list(reversed(self._world.facts(task).gold_actions))
        self._left[slot] = random.Random(f"{self._seed}/{task.task_id}/{attempt}").randint(1, self._longest)

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        own = [turn for turn in turns if self._left[turn.slot] > 0]
        decided = dict(zip((turn.slot for turn in own), self._student.act(own), strict=True)) if own else {}
        return [self._watched(turn, decided.get(turn.slot)) for turn in turns]

    @staticmethod
    def _taken_over(plan: list[str], turn: Turn) -> Decision:
        """The expert's next action; one that is no longer possible teaches nothing."""
        if not plan:
            return Decision(None)
        action, valid = plan.pop(), turn.observation.valid_actions
        return Decision(action, trainable=valid is None or action in valid)

    def _watched(self, turn: Turn, decision: Decision | None) -> Decision:
        plan = self._plans[turn.slot]
        if decision is None or decision.action is None:
            self._left[turn.slot] = 0
            return self._taken_over(plan, turn)
        self._left[turn.slot] -= 1
        if plan and decision.action == plan[-1]:
            plan.pop()
            return Decision(decision.action, prompt_tokens=decision.prompt_tokens)
        if undo := self._world.undo(decision.action):
            plan.append(undo)
        return Decision(decision.action, trainable=False, prompt_tokens=decision.prompt_tokens)
