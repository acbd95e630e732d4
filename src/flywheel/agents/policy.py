"""What a policy is: something that begins episodes in slots and answers a batch of observations with decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel.environments.protocol import Observation
from flywheel.trajectory import Task


@dataclass(frozen=True, slots=True)
class Turn:
    """One running episode that waits for a decision."""

    slot: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy does next. `action` is None when it has nothing left to try."""

    action: str | None
    subgoal: str = ""
    switched: bool = False
    thought: str = ""
    trainable: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[float, ...] | None = None


class Policy(Protocol):
    """Acts in many episodes at once. `name` is its role; id and version say exactly which policy it is."""

    name: str
    policy_id: str
    version: str

    def begin(self, slot: int, task: Task, attempt: int) -> None: ...

    def act(self, turns: Sequence[Turn]) -> list[Decision]: ...
