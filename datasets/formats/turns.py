"""From messages to turns: every answer of the assistant is one, with what was said since the answer before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flywheel.messages import Image, Message, system_of


@dataclass(frozen=True, slots=True)
class ImportedTurn:
    """One turn of another tool's agent: what it was told since its last turn, and what it answered.

    `policy`: the model that answered, where it is not the run's. Counts and cost are None where nobody said.
    """

    inputs: tuple[Message, ...]
    output: Message
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    logprobs: tuple[float, ...] | None = None
    seconds: float = 0.0
    trainable: bool = True
    screenshot: str | None = None
    policy: str = ""


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A message of a record. `turn`: what else is known of the turn, for an answer; its messages are filled in here."""

    message: Message
    images: tuple[Image, ...] = ()
    turn: ImportedTurn = ImportedTurn((), Message("assistant"))


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of a conversation, what was said after the last one, and every image."""

    turns: tuple[ImportedTurn, ...]
    rest: tuple[Message, ...]
    images: tuple[Image, ...]

    @property
    def instruction(self) -> str:
        """The first words of the user."""
        messages = [*(message for turn in self.turns for message in turn.inputs), *self.rest]
        return next((message.content for message in messages if message.role == "user"), "")

    @property
    def system(self) -> str | None:
        """The prompt that the agent was given before anything else."""
        return system_of(self.turns[0].inputs) if self.turns else None


def conversation_of(messages: Iterable[ReadMessage]) -> Conversation:
    """The turns of messages in their order."""
    turns, images = list[ImportedTurn](), list[Image]()
    waiting, screenshot = list[Message](), None
    for read in messages:
        images += read.images
        if read.message.role == "assistant":
            turns.append(replace(read.turn, inputs=tuple(waiting), output=read.message, screenshot=screenshot))
            waiting, screenshot = [], None
        else:
            waiting.append(read.message)
            screenshot = read.images[-1].sha256 if read.images else screenshot
    return Conversation(tuple(turns), tuple(waiting), tuple(images))
