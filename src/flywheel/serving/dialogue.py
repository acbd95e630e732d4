"""A chat request as an episode: the task, the turns so far, and what is seen now.

The API keeps no state, so each request brings the whole dialogue. That lets any student take over any episode: after a
restart, after a promotion, or one that somebody else began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from flywheel.agents.contexts.chat_format import ParsedAnswer, parse_answer, parse_observation
from flywheel.agents.policy import Decision, Past
from flywheel.environments.protocol import Observation
from flywheel.serving.requests import Message
from flywheel.serving.transcripts import Transcript, TurnTexts
from flywheel.trajectory import Split, Task


@dataclass(frozen=True, slots=True)
class Scene:
    """`past` reads the turns so far, of which there are `turns`: needed only by a student that does not remember them.
    `before` is the dialogue without `newest`, the turns that are answered now."""

    task: Task
    turns: int
    past: Callable[[], Past]
    now: Observation
    audit: str
    before: Transcript
    newest: Sequence[TurnTexts]

    def continued(self, answer: TurnTexts) -> str:
        """The name of the dialogue once it has been answered: the next request's `before`."""
        return self.before.then([*self.newest, answer]).name


def scene(messages: Sequence[Message]) -> Scene:
    """What a dialogue tells. Raises `ValueError` if it does not end with what is seen now."""
    if messages[-1].role not in ("user", "tool"):
        raise ValueError("the last message must be the user's: what is seen now")
    instruction = "\n".join(message.text for message in messages if message.role in ("system", "developer"))
    now, audit = parse_observation(messages[-1].text)
    return Scene(
        task=Task("served", "{}", Split.TRAIN, 0, instruction),
        turns=sum(message.role == "assistant" for message in messages),
        past=partial(_past, messages),
        now=now,
        audit=audit,
        before=Transcript().then((message.role, message.text) for message in messages[:-1]),
        newest=[(messages[-1].role, messages[-1].text)],
    )


def _past(messages: Sequence[Message]) -> Past:
    past: list[tuple[Observation, Decision]] = []
    seen, subgoal = Observation(""), ""
    for message in messages:
        if message.role in ("user", "tool"):
            seen, _ = parse_observation(message.text)
        elif message.role == "assistant":
            parsed = parse_answer(message.text, seen.valid_actions) or ParsedAnswer(message.text.strip())
            subgoal = parsed.subgoal or subgoal
            past.append((seen, Decision(parsed.action, subgoal=subgoal, new_subgoal=bool(parsed.subgoal))))
    return past
