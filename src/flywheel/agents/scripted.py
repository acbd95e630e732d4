"""Teachers and baselines: the simulator's own expert, a noisy expert, random valid actions, and none at all.

Teachers open the privileged door. What they know stays in them: their decisions carry actions alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from flywheel.agents.guard import Guard
from flywheel.agents.policy import Decision, Turn
from flywheel.environments.protocol import Observation, World
from flywheel.trajectory import Task, digest


class Expert:
    """Plays the gold actions; with `noise` > 0 it sometimes does something else and then finds its way back.

    Injected actions are marked not trainable. Some of them cannot be taken back (food is eaten or burnt), and then
    the expert fails honestly.
    """

    def __init__(self, world: World, *, noise: float = 0.0, seed: int = 0) -> None:
        self.name = "noisy_expert" if noise else "expert"
        self.policy_id = f"{self.name}-{digest('expert', noise, seed, size=4)}"
        self.version = "1"
        self._world, self._noise, self._seed = world, noise, seed
        self._plans: dict[int, list[str]] = {}
        self._chance: dict[int, random.Random] = {}

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        self._plans[slot] = list(reversed(self._world.facts(task).gold_actions))
        self._chance[slot] = random.Random(f"{self._seed}/{task.task_id}/{attempt}")

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [self._decide(turn.slot, turn.observation) for turn in turns]

    def _decide(self, slot: int, observation: Observation) -> Decision:
        plan, chance = self._plans[slot], self._chance[slot]
        if chance.random() < self._noise and observation.valid_actions:
            action = chance.choice(observation.valid_actions)
            if undo := self._world.undo(action):
                plan.append(undo)
            return Decision(action, trainable=False)
        if not plan:
            return Decision(None)
        action = plan.pop()
        return Decision(action, trainable=observation.valid_actions is None or action in observation.valid_actions)


class RandomPolicy:
    """Any valid action that the guard still offers: the floor that the first student must beat."""

    def __init__(self, *, seed: int = 0, max_repeats: int = 2) -> None:
        self.name = "random"
        self.policy_id = f"random-{digest('random', seed, max_repeats, size=4)}"
        self.version = "1"
        self._seed, self._max_repeats = seed, max_repeats
        self._guards: dict[int, Guard] = {}
        self._chance: dict[int, random.Random] = {}

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        self._guards[slot] = Guard(self._max_repeats)
        self._chance[slot] = random.Random(f"{self._seed}/{task.task_id}/{attempt}")

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        decisions = []
        for turn in turns:
            offered = self._guards[turn.slot].offer(turn.observation)
            if not offered:
                decisions.append(Decision(None))
                continue
            action = self._chance[turn.slot].choice(offered)
            self._guards[turn.slot].took(turn.observation, action)
            decisions.append(Decision(action))
        return decisions


class Idle:
    """Says the same meaningless words at every turn: what no verifier may take for work."""

    name, policy_id, version = "idle", "idle", "1"

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        pass

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [Decision(NO_OP) for _ in turns]


NO_OP = "do nothing at all"
