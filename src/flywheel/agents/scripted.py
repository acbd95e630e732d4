"""Teachers and baselines: the simulator's own expert, one that makes mistakes, random valid actions, and none at all.

Teachers open the privileged door. What they know stays in them: their decisions carry actions alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from flywheel.agents.contexts.action_mask import ActionMask
from flywheel.agents.policy import Decision, Past, Turn
from flywheel.environments.capabilities import solver, undo_of
from flywheel.environments.privileged import Facts
from flywheel.environments.protocol import Observation, World
from flywheel.trajectory import StopReason, Task, digest


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Chances, at each step, of the kinds of mistake that real agents make."""

    wrong_action: float = 0.0
    """Some other valid action, taken back as well as it can be."""
    skipped_subgoal: float = 0.0
    """The next action that counts is left out, and the plan goes on as if it had been done."""
    early_stop: float = 0.0
    """The task is declared done, or given up where nothing can be declared."""
    loop: float = 0.0
    """Something is done and taken back, several times over."""


LOOPS = 3
"""Times that a loop goes round."""


class Expert:
    """Plays the gold actions, also from a past that others have behind them; sometimes with mistakes.

    Injected actions are marked not trainable. Some of them cannot be taken back (food is eaten or burnt), and then
    the expert fails honestly.
    """

    def __init__(self, world: World, mistakes: Mistakes | None = None, *, seed: int = 0) -> None:
        self.name = "noisy_expert" if mistakes else "expert"
        self._mistakes = mistakes or Mistakes()
        self.policy_id = f"{self.name}-{digest('expert', astuple(self._mistakes), seed, size=4)}"
        self.version = "1"
        self._world, self._solver, self._seed = world, solver(world, f"the teacher {self.name}"), seed
        self._facts: dict[int, tuple[Task, Facts]] = {}
        self._plans: dict[int, list[str]] = {}
        self._milestone_actions: dict[int, frozenset[str]] = {}
        self._chance: dict[int, random.Random] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        known = self._facts.get(slot)
        facts = known[1] if known and known[0] == task else self._solver.facts(task)
        self._facts[slot] = task, facts
        self._plans[slot] = list(reversed(facts.gold_actions))
        self._milestone_actions[slot] = frozenset(milestone.action for milestone in facts.milestones)
        self._chance[slot] = random.Random(f"{self._seed}/{task.task_id}/{attempt}")
        for _, decision in past:
            self._chance[slot].random()
            self._follow(slot, decision.action or "")

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [self._decide(turn) for turn in turns]

    def _decide(self, turn: Turn) -> Decision:
        plan, observation = self._plans[turn.slot], turn.observation
        if not turn.audit and (mistaken := self._mistake(turn.slot, observation)):
            return mistaken
        if not plan:
            return Decision(None)
        action = plan.pop()
        return Decision(action, trainable=observation.valid_actions is None or action in observation.valid_actions)

    def _mistake(self, slot: int, observation: Observation) -> Decision | None:
        plan, chance, kinds = self._plans[slot], self._chance[slot], self._mistakes
        draw, valid = chance.random(), observation.valid_actions
        if valid and draw < kinds.wrong_action:
            action = chance.choice(valid)
            self._follow(slot, action)
            return Decision(action, trainable=False)
        draw -= kinds.wrong_action
        if valid and 0 <= draw < kinds.loop:
            undoable = [(action, back) for action in valid if (back := undo_of(self._world, action))]
            if not undoable:
                return None
            action, back = chance.choice(undoable)
            plan += [back, *[action, back] * (LOOPS - 1)]
            return Decision(action, trainable=False)
        draw -= kinds.loop
        if 0 <= draw < kinds.skipped_subgoal:
            due = next(
                (place for place in reversed(range(len(plan))) if plan[place] in self._milestone_actions[slot]), None
            )
            if due is not None:
                del plan[due]
            return None
        draw -= kinds.skipped_subgoal
        if 0 <= draw < kinds.early_stop:
            return Decision(observation.finish, trainable=False, stop=StopReason.GAVE_UP)
        return None

    def _follow(self, slot: int, action: str) -> None:
        """Something was done: the next step of the plan, or something to be taken back."""
        plan = self._plans[slot]
        if plan and action == plan[-1]:
            plan.pop()
        elif undo := undo_of(self._world, action):
            plan.append(undo)


class LiveExpert:
    """Does what the environment's live expert says, from any state; sometimes any valid action in its place."""

    takes_advice = True

    def __init__(self, mistakes: Mistakes | None = None, *, seed: int = 0) -> None:
        self.name = "noisy_expert" if mistakes else "expert"
        self._mistakes = mistakes or Mistakes()
        self.policy_id = f"{self.name}-{digest('live expert', astuple(self._mistakes), seed, size=4)}"
        self.version = "1"
        self._seed = seed
        self._chance: dict[int, random.Random] = {}
        self._subgoals: dict[int, str] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        self._chance[slot] = random.Random(f"{self._seed}/{task.task_id}/{attempt}")
        self._subgoals[slot] = past[-1][1].subgoal if past else ""
        for _ in past:
            self._chance[slot].random()

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [self._decide(turn) for turn in turns]

    def _decide(self, turn: Turn) -> Decision:
        draw, kinds, valid = self._chance[turn.slot].random(), self._mistakes, turn.observation.valid_actions
        if valid and draw < kinds.wrong_action:
            action = self._chance[turn.slot].choice(valid)
            return Decision(action, subgoal=self._subgoals[turn.slot], trainable=False)
        if not turn.audit and 0 <= draw - kinds.wrong_action < kinds.early_stop:
            return Decision(turn.observation.finish, trainable=False, stop=StopReason.GAVE_UP)
        if turn.advice is None:
            return Decision(None)
        before, subgoal = self._subgoals[turn.slot], turn.advice.subgoal or self._subgoals[turn.slot]
        self._subgoals[turn.slot] = subgoal
        return Decision(turn.advice.action, subgoal=subgoal, new_subgoal=subgoal != before)


class RandomPolicy:
    """Any valid action that the action mask still offers: the floor that the first student must beat."""

    def __init__(self, *, seed: int = 0, max_repeats: int = 2) -> None:
        self.name = "random"
        self.policy_id = f"random-{digest('random', seed, max_repeats, size=4)}"
        self.version = "1"
        self._seed, self._max_repeats = seed, max_repeats
        self._masks: dict[int, ActionMask] = {}
        self._chance: dict[int, random.Random] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        self._masks[slot] = ActionMask(self._max_repeats)
        self._chance[slot] = random.Random(f"{self._seed}/{task.task_id}/{attempt}")
        for observation, decision in past:
            self._masks[slot].offer(observation)
            self._masks[slot].took(observation, decision.action or "")
            self._chance[slot].random()

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        decisions = []
        for turn in turns:
            offered = self._masks[turn.slot].offer(turn.observation)
            if not offered:
                decisions.append(Decision(None))
                continue
            action = self._chance[turn.slot].choice(offered)
            self._masks[turn.slot].took(turn.observation, action)
            decisions.append(Decision(action))
        return decisions


class Idle:
    """Says the same meaningless words at every turn: what no verifier may take for work."""

    name, policy_id, version = "idle", "idle", "1"

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        pass

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [Decision(NO_OP) for _ in turns]


NO_OP = "do nothing at all"
