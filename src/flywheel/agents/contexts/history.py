"""What each agent remembers while it acts: its windows and its memory, as folds over decisions and observations.

`FlatContext` and `HierarchicalContext` are driven by a live rollout and, with the recorded decisions, by
`distill.examples`. Both call the same methods in the same order; that is what makes training rows equal rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flywheel.agents.contexts.memory import Memory
from flywheel.agents.contexts.prompts import (
    DONE,
    TASK,
    Piece,
    Role,
    SubgoalOutcome,
    UnreadWindow,
    Window,
    lines_in_view,
    open_window,
    restated,
    task_piece,
)
from flywheel.environments.protocol import Observation


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an agent's contexts, stored with the policy: training and rollouts must share them."""

    window_steps: int = 16
    """Decisions of the executor (or flat agent) before its window starts anew."""
    planner_window: int = 10
    """Subgoals before the planner's window starts anew."""
    segment_steps: int = 16
    """Steps after which an unfinished subgoal counts as timed out."""
    stuck_after: int = 0
    """Steps in a row that changed nothing, after which a subgoal counts as stuck; 0: never."""
    window_chars: int = 16_000
    """Characters of an agent's conversation after which its oldest turns are left out."""


@dataclass(slots=True)
class FlatContext:
    """task, the last steps, observation → action."""

    instruction: str
    limits: Limits
    memory: Memory = field(default_factory=Memory)
    window: Window | None = None
    steps: int = 0
    """Actions so far."""
    opening: Piece | None = None
    """What an agent that brings its own prompt was asked first: its task."""
    archive: list[Window] | None = None
    """Full windows, kept only where training rows are made of them."""
    _last: tuple[Observation, str] | None = None

    @property
    def task(self) -> Piece:
        return self.opening or Piece(self.instruction, marker=TASK)

    def observe(self, observation: Observation) -> Window:
        """Take in what came of the last action; the window that comes back is ready for a decision."""
        if observation.opens_task:
            self.opening = task_piece(observation)
        self._learn(observation)
        self.window = self._roll(self.window, self.limits.window_steps, observation)
        return self.window

    def act(self, observation: Observation, action: str, *, target: bool = False) -> None:
        assert self.window is not None
        self.window.act(action, target=target, decision=self.steps)
        self.window.decisions += 1
        self.steps += 1
        self._last = (observation, action)
        self.memory = self._remember(action)

    def _remember(self, action: str) -> Memory:
        return self.memory.did(action)

    def _learn(self, observation: Observation) -> None:
        if self._last is None:
            return
        before, action = self._last
        self.memory = self.memory.read(observation.document).moved(before.location, action, observation.location)
        if self.window is None:
            return
        if observation.feedback or (observation.text == before.text and not observation.whole):
            self.window.feedback(observation)
        if observation.whole or not (observation.feedback or observation.text == before.text):
            self.window.look(observation)

    def _roll(self, window: Window | None, limit: int, observation: Observation) -> Window:
        if window is None:
            return self._open(observation)
        too_long = self.opening is not None and window.chars > self.limits.window_chars
        if window.decisions < limit and not too_long:
            return window
        if self.archive is not None:
            self.archive.append(window)
        if self.opening is None:
            return self._open(observation)
        return window.shortened(self.task, self.memory, limit // 2, self.limits.window_chars // 2)

    def _open(self, observation: Observation) -> Window:
        return open_window(self.task, self.memory, unsaid(observation))


@dataclass(slots=True)
class HierarchicalContext(FlatContext):
    """planner: task, episodic memory, observation → subgoal; executor: subgoal, its own steps, observation → action."""

    subgoal: str = ""
    steps_in_segment: int = 0
    idle_steps: int = 0
    """Steps in a row, under this subgoal, after which the state was what it was before."""
    plan_window: Window | None = None
    plan_archive: list[Window] | None = None
    finished: list[str] = field(default_factory=list)
    """Subgoals that were done."""
    unread: Role | None = None
    """The level whose windows are not asked for, where training rows of the other are made."""

    def observe(self, observation: Observation) -> Window:
        if self._last is not None and self.steps_in_segment:
            idle = self._last[0].state_key == observation.state_key != "" and not observation.document
            self.idle_steps = self.idle_steps + 1 if idle else 0
        before, window = self.window, FlatContext.observe(self, observation)
        if window is not before and self.subgoal and not self.failed:
            window.subgoal(self.subgoal)
        return window

    @property
    def must_plan(self) -> bool:
        return not self.subgoal

    @property
    def failed(self) -> SubgoalOutcome | None:
        """Why the subgoal in force must be given up, if it must: its budget of steps is spent, or nothing changes."""
        if not self.subgoal:
            return None
        if self.steps_in_segment >= self.limits.segment_steps:
            return SubgoalOutcome.TIMEOUT
        return SubgoalOutcome.STUCK if self.idle_steps >= self.limits.stuck_after > 0 else None

    def plan(self, observation: Observation) -> Window:
        """The planner's window, ready for its next subgoal. Of calls and messages it reads the text."""
        observation, task = replace(observation, messages=None, tools=None), replace(self.task, messages=(), tools="")
        documents = self.memory.documents
        window = self.plan_window
        if window is None or window.decisions >= self.limits.planner_window:
            if window is not None and self.plan_archive is not None:
                self.plan_archive.append(window)
            window = UnreadWindow([])
            if self.unread is not Role.PLANNER:
                later = restated(task, documents)
                window = open_window(task, self.memory, unsaid(observation), later)
            self.plan_window = window
        else:
            window.look(observation)
        window.restate(restated(task, documents, self.finished))
        window.restate(lines_in_view(documents, observation.text, self.finished))
        return window

    def _open(self, observation: Observation) -> Window:
        if self.unread is Role.EXECUTOR:
            return UnreadWindow([])
        return open_window(self.task, replace(self.memory, documents=()), unsaid(observation))

    def adopt(self, observation: Observation, subgoal: str, *, target: bool = False) -> None:
        """Take up the planner's subgoal: the planner's target, and what the executor's next window is about."""
        assert self.plan_window is not None and self.window is not None
        self.plan_window.subgoal(subgoal, own=True, target=target, decision=self.steps)
        self.plan_window.decisions += 1
        if self.window.has_subgoal and self.opening is None:
            if self.archive is not None:
                self.archive.append(self.window)
            self.window = self._open(observation)
        self.window.subgoal(subgoal)
        self.subgoal, self.steps_in_segment, self.idle_steps = subgoal, 0, 0

    def finish(self, outcome: SubgoalOutcome, *, target: bool = False) -> None:
        """The subgoal ends: the executor says so itself, or its steps ran out."""
        assert self.plan_window is not None and self.window is not None
        if outcome is SubgoalOutcome.DONE:
            self.window.end_with(DONE, target=target, decision=self.steps)
            self.finished.append(self.subgoal)
        self.plan_window.outcome(outcome)
        self.memory = self.memory.did(self.subgoal if outcome is SubgoalOutcome.DONE else f"{self.subgoal} {outcome}")
        self.subgoal = ""

    def act(self, observation: Observation, action: str, *, target: bool = False) -> None:
        FlatContext.act(self, observation, action, target=target)
        self.steps_in_segment += 1

    def _remember(self, action: str) -> Memory:
        return self.memory

    def follow(
        self, observation: Observation, action: str, subgoal: str, *, new_subgoal: bool
    ) -> SubgoalOutcome | None:
        """Take in a turn that was decided elsewhere; how the subgoal before it ended, if it did.

        Without a subgoal, another policy has acted, and the subgoal in force is given up.
        """
        self.observe(observation)
        ended = self.failed
        if ended is None and not self.must_plan and (new_subgoal or not subgoal):
            ended = SubgoalOutcome.DONE if subgoal else SubgoalOutcome.STUCK
        if ended:
            self.finish(ended)
        if subgoal and self.must_plan:
            self.plan(observation)
            self.adopt(observation, subgoal)
        self.act(observation, action)
        return ended


def unsaid(observation: Observation) -> Observation:
    """The observation without the task, which stands in the header."""
    return replace(observation, text="", messages=None) if observation.opens_task else observation
