"""Mixture policies: the student acts and a teacher labels or takes over (DAgger, arXiv 1011.0686).

Dataset aggregation (Ross, Gordon & Bagnell 2011, arXiv 1011.0686): the student leads into its own states, the teacher
says what should be done there. Rules say who acts: by a coin at each step, by stretches as in AggreVaTe (arXiv
1406.5979), or the teacher only where the student is stuck.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from flywheel.agents.policy import AdvisedPolicy, Decision, Policy, Turn
from flywheel.agents.student import HierarchicalAgent
from flywheel.environments.protocol import Observation
from flywheel.trajectory import Task, digest
from flywheel.unknowns import known_sum


@dataclass(slots=True)
class Watched:
    """One episode of a mixture. `left`: steps that the one in charge goes on for, under rules that count them."""

    task: Task
    attempt: int
    chance: random.Random
    past: list[tuple[Observation, Decision]]
    left: int = 0
    knows: set[str] = field(default_factory=set)
    """Who of the two has seen the past as it was."""


class Rule(Protocol):
    """Who acts. `labels`: is the teacher asked at every step, or only where it acts?"""

    @property
    def labels(self) -> bool: ...

    def begin(self, episode: Watched) -> None: ...

    def student_acts(self, episode: Watched, slot: int, student: Policy) -> bool: ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """The student acts for a random number of steps, then the teacher finishes."""

    longest: int
    labels: bool = True

    def begin(self, episode: Watched) -> None:
        episode.left = episode.chance.randint(1, self.longest)

    def student_acts(self, episode: Watched, slot: int, student: Policy) -> bool:
        return len(episode.past) < episode.left


@dataclass(frozen=True, slots=True)
class Coin:
    """At each step the student acts with probability beta."""

    beta: float
    labels: bool = True

    def begin(self, episode: Watched) -> None:
        pass

    def student_acts(self, episode: Watched, slot: int, student: Policy) -> bool:
        return episode.chance.random() < self.beta


@dataclass(frozen=True, slots=True)
class Escalation:
    """The teacher takes over for some steps when so many of a hierarchical student's subgoals have failed in a row."""

    failures: int
    steps: int
    labels: bool = False

    def begin(self, episode: Watched) -> None:
        episode.left = 0

    def student_acts(self, episode: Watched, slot: int, student: Policy) -> bool:
        if episode.left:
            episode.left -= 1
            return False
        known = "student" in episode.knows
        if known and isinstance(student, HierarchicalAgent) and student.failures(slot) >= self.failures:
            episode.left = self.steps - 1
            return False
        return True


class Mixture:
    """Student and teacher in one policy. Each step says who acted, and what the teacher would have done."""

    def __init__(self, student: Policy, teacher: Policy, rule: Rule, *, seed: int = 0) -> None:
        self.name = "tutored"
        parts = [(policy.policy_id, policy.version) for policy in (student, teacher)]
        self.policy_id = f"tutored-{digest(parts, type(rule).__name__, asdict(rule), seed, size=4)}"  # type: ignore[call-overload]
        self.version = "2"
        self.takes_advice = isinstance(teacher, AdvisedPolicy) and teacher.takes_advice
        self._parts = {"student": student, "teacher": teacher}
        self._rule, self._seed = rule, seed
        self._episodes: dict[int, Watched] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Sequence[tuple[Observation, Decision]] = ()) -> None:
        chance = random.Random(f"{self._seed}/{task.task_id}/{attempt}")
        self._episodes[slot] = Watched(task, attempt, chance, list(past))
        self._rule.begin(self._episodes[slot])

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        student = self._parts["student"]
        led_turns = [turn for turn in turns if self._rule.student_acts(self._episodes[turn.slot], turn.slot, student)]
        led = self._ask("student", [replace(turn, advice=None) for turn in led_turns])
        stranded = [turn for turn in turns if turn.slot not in led or led[turn.slot].action is None]
        taught = self._ask("teacher", turns if self._rule.labels else stranded)
        return [self._settled(turn, led.get(turn.slot), taught.get(turn.slot)) for turn in turns]

    def _ask(self, who: str, turns: Sequence[Turn]) -> dict[int, Decision]:
        policy = self._parts[who]
        for turn in turns:
            episode = self._episodes[turn.slot]
            if who not in episode.knows:
                policy.begin(turn.slot, episode.task, episode.attempt, episode.past)
                episode.knows.add(who)
        return dict(zip((turn.slot for turn in turns), policy.act(turns), strict=True)) if turns else {}

    def _settled(self, turn: Turn, led: Decision | None, taught: Decision | None) -> Decision:
        """The decision that is played, and which policies must be informed of it."""
        episode = self._episodes[turn.slot]
        if led is not None and led.action is not None:
            decision = _labelled(_signed(led, self._parts["student"]), taught)
        else:
            assert taught is not None
            decision = _with_cost_of(_signed(taught, self._parts["teacher"]), led)
        decisions = {"student": led, "teacher": taught}
        episode.knows = {who for who, step in decisions.items() if step is not None and step.action == decision.action}
        episode.past.append((turn.observation, decision))
        return decision


def _signed(decision: Decision, policy: Policy) -> Decision:
    return replace(
        decision,
        policy_id=decision.policy_id or policy.policy_id,
        policy_version=decision.policy_version or policy.version,
    )


def _labelled(led: Decision, taught: Decision | None) -> Decision:
    """A student's step teaches what the teacher would have done; where the teacher does not know, nothing."""
    if taught is None:
        return replace(led, trainable=False)
    label = taught.action if taught.trainable else None
    return _with_cost_of(replace(led, trainable=led.action == taught.action, teacher_action=label), taught)


def _with_cost_of(decision: Decision, other: Decision | None) -> Decision:
    """Who was asked beside the one that acts is paid too."""
    if other is None:
        return decision
    return replace(
        decision,
        prompt_tokens=known_sum((decision.prompt_tokens, other.prompt_tokens)),
        completion_tokens=known_sum((decision.completion_tokens, other.completion_tokens)),
        cost=known_sum((decision.cost, other.cost)),
    )
