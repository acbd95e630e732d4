"""A chat request as an episode: the task, the turns so far, and what is seen now.

The API keeps no state, so each request brings the whole dialogue. That lets any student take over any episode: after a
restart, after a promotion, or one that somebody else began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.agents.contexts.chat_format import ParsedAnswer, parse_answer, parse_observation
from flywheel.agents.policy import Decision
from flywheel.environments.protocol import Observation
from flywheel.serving.requests import Message
from flywheel.trajectory import Split, Task, digest


@dataclass(frozen=True, slots=True)
class Scene:
    """`before` and `after` name the dialogue up to now, without and with the newest observation."""

    task: Task
    past: tuple[tuple[Observation, Decision], ...]
    now: Observation
    audit: str
    before: str
    after: str


def scene(messages: Sequence[Message]) -> Scene:
    """What a dialogue tells. Raises `ValueError` if it does not end with what is seen now."""
    if messages[-1].role not in ("user", "tool"):
        raise ValueError("the last message must be the user's: what is seen now")
    instruction = "\n".join(message.text for message in messages if message.role in ("system", "developer"))
    past: list[tuple[Observation, Decision]] = []
    seen, audit, subgoal = Observation(""), "", ""
    for message in messages:
        if message.role in ("user", "tool"):
            seen, audit = parse_observation(message.text)
        elif message.role == "assistant":
            parsed = parse_answer(message.text, seen.valid_actions) or ParsedAnswer(message.text.strip())
            subgoal = parsed.subgoal or subgoal
            past.append((seen, Decision(parsed.action, subgoal=subgoal, new_subgoal=bool(parsed.subgoal))))
    spoken = [(message.role, message.text) for message in messages]
    return Scene(
        task=Task("served", "{}", Split.TRAIN, 0, instruction),
        past=tuple(past),
        now=seen,
        audit=audit,
        before=digest(spoken[:-1], size=16),
        after=digest(spoken, size=16),
    )


def continued(scene: Scene, messages: Sequence[Message], answer: str) -> str:
    """The name of the dialogue once it has been answered: the next request's `before`."""
    return digest([*((message.role, message.text) for message in messages), ("assistant", answer)], size=16)
