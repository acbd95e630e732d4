"""The policy protocol: begins episodes in slots and answers a batch of observations with decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flywheel.environments.capabilities import Advice
from flywheel.environments.protocol import Observation
from flywheel.messages import Message
from flywheel.trajectory import StopReason, Task


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the words of an answer are drawn. Temperature 0 is greedy; `top_p`: from the likeliest tokens that together
    have this probability (nucleus sampling, arXiv 1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One running episode that waits for a decision."""

    slot: int
    observation: Observation
    audit: str = ""
    """Why an auditor refused the last decision, which said that the task was done; empty otherwise."""
    advice: Advice | None = None
    """What the environment's live expert would do; told to policies that take advice, and to no others."""
    sampling: Sampling | None = None
    """How a student draws this answer, where who asks wants it otherwise than it was evaluated."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy does next. `action` is None when it does nothing any more; `stop` then says why."""

    action: str | None
    subgoal: str = ""
    new_subgoal: bool = False
    thought: str = ""
    trainable: bool = True
    teacher_action: str | None = None
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    tokens: tuple[int, ...] | None = None
    """The words of the action as a student's model wrote them, without the end of the answer."""
    logprobs: tuple[float, ...] | None = None
    top_tokens: tuple[tuple[str, ...], ...] | None = None
    top_logprobs: tuple[tuple[float, ...], ...] | None = None
    cost: float | None = 0.0
    stop: StopReason = StopReason.NO_ACTION
    error: str = ""
    """What was wrong with answers that could not be read."""
    policy_id: str = ""
    """Who decided, where it was not the policy that was asked: a mixture's part, a server's champion of the moment."""
    policy_version: str = ""
    output: Message | None = None
    """The answer as a message, where the action is tool calls and the policy has ids for them."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a student's words are chosen; part of the policy's version. Temperature 0 is greedy, for both levels."""

    max_repeats: int = 0
    """Times an action is offered from one state; 0: always."""
    max_subgoal_tokens: int = 16
    max_action_tokens: int = 128
    """Tokens of an action that is written freely, where the environment lists none."""
    temperature: float = 0.0
    seed: int = 0


Past = Sequence[tuple[Observation, Decision]]
"""The turns of an episode so far, by any policy."""


class Policy(Protocol):
    """Acts in many episodes at once. `name` is its role; id and version say exactly which policy it is.

    `begin` takes an episode over in a slot, new or with a past that this or another policy has behind it.
    """

    name: str
    policy_id: str
    version: str

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None: ...

    def act(self, turns: Sequence[Turn]) -> list[Decision]: ...


@runtime_checkable
class AdvisedPolicy(Policy, Protocol):
    """A teacher that speaks for the environment's live expert, or a mixture with one."""

    takes_advice: bool


@runtime_checkable
class AsyncPolicy(Policy, Protocol):
    """A policy that waits for a server or a person: its turns need no batch and run concurrently."""

    async def decide(self, turn: Turn) -> Decision: ...

    async def close(self) -> None:
        """The event loop ends; connections must not outlive it."""
