"""Private data replaced consistently: within a session the same address has the same placeholder, in what tools answer
and in what the agent makes of it, so that a student can learn to copy it. Another session counts anew."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flywheel.datasets.formats.records import compact
from flywheel.datasets.lake.redaction import MARK, replace_secrets
from flywheel.errors import PrerequisiteError
from flywheel.messages import Message, action_of, text_of_inputs, thought_of
from flywheel.text import with_strings
from flywheel.trajectory import Step, Trajectory

SEAL = "FLYWHEEL_PLACEHOLDER_KEY"
"""The environment variable of the key (Fernet's) under which what was replaced is kept; without it, nothing is."""


class Placeholders:
    """The placeholders of one session. `also`: optional kinds of personal data; `patterns`: what else is private."""

    def __init__(self, patterns: Sequence[str] = (), also: Sequence[str] = ()) -> None:
        self._patterns, self._also = patterns, also
        self._names: dict[tuple[str, str], str] = {}
        self.originals: dict[str, str] = {}
        """Placeholder → what it stands for, as it was first spelled."""

    def text(self, text: str) -> str:
        return replace_secrets(text, self._name, self._also, self._patterns)

    def message(self, message: Message) -> Message:
        return replace(
            message,
            content=self.text(message.content),
            parts=None if message.parts is None else self.json(message.parts),
            reasoning=None if message.reasoning is None else self.text(message.reasoning),
            error=None if message.error is None else self.text(message.error),
            tool_calls=tuple(replace(call, arguments=self.json(call.arguments)) for call in message.tool_calls),
        )

    def restored(self, message: Message) -> Message:
        """A message with what its placeholders stand for in this session. One that stands for nothing stays."""
        calls = (replace(call, arguments=self._original(call.arguments, quoted=True)) for call in message.tool_calls)
        return replace(message, content=self._original(message.content), tool_calls=tuple(calls))

    def _original(self, text: str, *, quoted: bool = False) -> str:
        if MARK not in text:
            return text
        for name, original in self.originals.items():
            text = text.replace(name, json.dumps(original, ensure_ascii=False)[1:-1] if quoted else original)
        return text

    def json(self, text: str) -> str:
        """A JSON text with its strings replaced; what is no JSON is read as text."""
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        clean = with_strings(whole, self.text)
        return text if clean == whole else json.dumps(clean, ensure_ascii=False)

    def _name(self, kind: str, secret: str) -> str:
        key = (kind, secret.casefold())
        if key not in self._names:
            number = 1 + sum(known == kind for known, _ in self._names)
            self._names[key] = f"{MARK}{kind} {number}]"
            self.originals[self._names[key]] = secret
        return self._names[key]

    def replaced(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory as the lake may hold it. What was replaced is counted, and sealed where there is a key."""
        steps = tuple(map(self._step, trajectory.steps))
        final = tuple(map(self.message, trajectory.final_inputs or ()))
        clean = replace(
            trajectory,
            steps=steps,
            instruction=self.text(trajectory.instruction),
            system=None if trajectory.system is None else self.text(trajectory.system),
            tools=None if trajectory.tools is None else self.json(trajectory.tools),
            final_inputs=final,
            final_observation=text_of_inputs(final),
            error=self.text(trajectory.error),
        )
        extra = with_strings(json.loads(trajectory.extra), self.text) if trajectory.extra else {}
        if self.originals:
            extra["replaced"] = Counter(name[len(MARK) : -1].rpartition(" ")[0] for name in self.originals)
            if key := os.environ.get(SEAL):
                extra["sealed"] = _fernet(key).encrypt(compact(self.originals).encode()).decode()
        return replace(clean, extra=compact(extra) if extra else None)

    def _step(self, step: Step) -> Step:
        inputs = tuple(map(self.message, step.inputs or ()))
        output = self.message(step.output) if step.output else Message("assistant")
        return replace(
            step,
            inputs=inputs,
            output=output,
            observation=text_of_inputs(inputs),
            action=action_of(output),
            thought=thought_of(output),
        )


def originals(trajectory: Trajectory, key: str) -> dict[str, str]:
    """What the placeholders of a recorded trajectory stand for, with the key that was in force when it was recorded.

    Raises `PrerequisiteError` for another key.
    """
    from cryptography.fernet import InvalidToken

    sealed = json.loads(trajectory.extra or "{}").get("sealed")
    if sealed is None:
        return {}
    try:
        opened: dict[str, str] = json.loads(_fernet(key).decrypt(sealed.encode()))
    except InvalidToken:
        raise PrerequisiteError(f"{trajectory.trajectory_id} was sealed under another key") from None
    return opened


def _fernet(key: str) -> Any:
    from cryptography.fernet import Fernet

    try:
        return Fernet(key)
    except ValueError:
        raise PrerequisiteError(f"{SEAL} holds no key; make one with Fernet.generate_key() of cryptography") from None
