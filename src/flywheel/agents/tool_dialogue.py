"""What a chat model is shown where actions are tool calls: messages as the API has them, the newest of them in full."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from flywheel.agents.inference.endpoint import Answer
from flywheel.agents.policy import Decision
from flywheel.environments.protocol import Observation
from flywheel.environments.tools import ANSWER, names_of
from flywheel.messages import Message, ToolCall, action_of, calls_of, openai_message, thought_of

COMPLAINT = "No tool was called. Call one of the tools."
Messages = list[dict[str, Any]]


@dataclass(slots=True)
class ToolDialogue:
    """One episode: the task, what was said first, and the last `window` answers with what came of them (0: all)."""

    instruction: str
    window: int
    _opening: Messages | None = None
    _turns: list[Messages] = field(default_factory=list)
    """An answer and what came of it; the last one waits for its results."""

    def messages(self, seen: Observation, audit: str = "") -> Messages:
        """What to send for the next answer."""
        newest = _as_sent(seen)
        if audit:
            newest.append({"role": "user", "content": audit})
        if self._opening is None:
            return [*self._head(seen), *newest]
        return [*self._opening, *(message for turn in self._turns for message in turn), *newest]

    def _head(self, first: Observation) -> Messages:
        """The system prompt, unless the agent brings its own."""
        return [] if first.opens_task else [{"role": "system", "content": self.instruction}]

    def add(self, seen: Observation, answer: Message) -> None:
        """What was seen, and what was answered to it."""
        if self._opening is None:
            self._opening = [*self._head(seen), *_as_sent(seen)]
        else:
            self._turns[-1] += _as_sent(seen)
        self._turns.append([openai_message(replace(answer, reasoning=None))])
        if self.window:
            self._turns = self._turns[-self.window :]


def _as_sent(seen: Observation) -> Messages:
    """What was seen, as the API has messages."""
    messages = [Message("user", seen.text)] if seen.messages is None else seen.messages
    return [openai_message(message) for message in messages]


def answer_of(answer: Answer, tools: str) -> Message | None:
    """A model's answer as a message. Plain text is the call that answers, where there is one for that, and else what it
    says; None for no answer at all. What follows a call whose arguments are no JSON is not called."""
    calls, content = answer.calls, answer.text
    may_speak = ANSWER not in names_of(tools)
    if not calls and content.strip() and may_speak:
        return Message("assistant", content, reasoning=answer.thought or None)
    if not calls and content.strip():
        calls, content = (ToolCall("", ANSWER, json.dumps({"text": content}, ensure_ascii=False)),), ""
    if not calls:
        return None
    calls = tuple(call for call, _ in zip(calls, calls_of(action_of(Message("", tool_calls=calls))), strict=False))
    named = (call if call.id else replace(call, id=f"call-{place}") for place, call in enumerate(calls))
    return Message("assistant", content, reasoning=answer.thought or None, tool_calls=tuple(named))


def recorded_answer(decision: Decision) -> Message:
    """The answer behind a decision of any policy."""
    return decision.output or Message("assistant", decision.action or "")


def decision_of(message: Message, decision: Decision) -> Decision:
    """A decision about what it took, with the answer in it."""
    return replace(
        decision, action=action_of(message), thought=thought_of(message), output=message, subgoal="", new_subgoal=False
    )
