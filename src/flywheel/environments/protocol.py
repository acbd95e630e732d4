"""What every environment offers: reset to a task, step by a text action, say honestly how it went.

A new environment is one file beside this one and one line in `environments.catalog.ENVIRONMENTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from flywheel.messages import Message
from flywheel.trajectory import Task


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent may see now. Privileged facts never appear here."""

    text: str
    feedback: str = ""
    document: str = ""
    location: str = ""
    state_key: str = ""
    valid_actions: tuple[str, ...] | None = None
    whole: bool = False
    """Is `text` a view of its own at every step, as of an agent that turns around? Students are then shown all of it
    each time; else what stayed the same is not said again, and the view is not shown beside feedback."""
    finish: str | None = None
    """The action that says "I am done", where the environment waits for one."""
    tools: str | None = None
    """The tools that may be called, JSON in OpenAI's form, where actions are tool calls: `name arguments`, a line a
    call (`flywheel.messages.calls_of`)."""
    messages: tuple[Message, ...] | None = None
    """What was said as messages, where it came as such: `text` is their text. Results of tools stand in the order of
    the calls; ids are put in by whoever records them."""
    must_call: bool = False
    """Is text no answer here, only a call of a tool?"""
    answer_schema: str = ""
    """The JSON Schema of an answer in text, where it has to be JSON."""
    opens_task: bool = False
    """Is `text` the task itself, prompt and all, as of an agent that brings its own?"""
    instruction: str = ""
    """The task's words as the record may hold them, where private data in them is replaced."""


@dataclass(frozen=True, slots=True)
class Transition:
    """What one action led to. `terminated`: the task ended. Limits that truncate are the rollout's business.

    `progress` lies in [0, 1] and is 1 exactly when the task is solved.
    """

    observation: Observation
    reward: float
    progress: float
    terminated: bool
    success: bool


class Environment(Protocol):
    """One running episode at a time, called by one thread at a time: the one that plays, or the one that replays.

    Raises `InfrastructureError` when it breaks, never for a bad action, and `TaskError` for a task that is not its
    world's.
    """

    def reset(self, task: Task) -> Observation: ...

    def step(self, action: str) -> Transition: ...


class World(Protocol):
    """A running simulator: it hands out environments that step independently. In one process its methods are never
    called by two threads at once, but `facts` and `undo` may be called by another thread than the one that opened it.

    What else a world may offer, `capabilities` says: tasks of its own, solutions, actions that take others back.
    """

    def environments(self, count: int) -> Sequence[Environment]: ...


class OpenWorld(Protocol):
    """Starts a simulator for canonical JSON parameters; leaving the context stops it."""

    def __call__(self, parameters: str) -> AbstractContextManager[World]: ...
