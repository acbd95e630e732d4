"""One student in memory, answering chats as a whole agent and completions as its parts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from flywheel.agents.contexts.chat_format import ParsedAnswer, render_answer
from flywheel.agents.contexts.language import language_of
from flywheel.agents.contexts.prompts import Role
from flywheel.agents.inference.batching import Batcher
from flywheel.agents.inference.decoding import NOT_FINITE
from flywheel.agents.inference.grammars import Allowed
from flywheel.agents.inference.language_model import LanguageModel, LocalLanguageModel, grammars_of
from flywheel.agents.policy import Decision, Sampling, Turn
from flywheel.environments.protocol import Observation
from flywheel.environments.tools import names_of
from flywheel.errors import ConfigError, InfrastructureError, PolicyError
from flywheel.messages import Message as AnswerMessage
from flywheel.messages import answer_of_action
from flywheel.policies.card import ROLES, read_card
from flywheel.policies.models import load_part
from flywheel.policies.students import agent_of, on_device
from flywheel.serving.completions import Completer, Completion, GenerationRequest
from flywheel.serving.dialogue import Scene, scene
from flywheel.serving.requests import ChatRequest, Message
from flywheel.serving.returning import Returning
from flywheel.serving.tool_scene import spelling, tool_scene

RECENT = 40
"""Messages at the end of a dialogue that a context may hold in full."""
DIALOGUES = 256
CACHE_BYTES = 4 << 30
"""How many episodes' state is kept between requests, and what their keys and values may take: others are folded anew
from their messages."""
_Written = Callable[[Decision], tuple[AnswerMessage, str]]
"""Decision → (answer, the name of the dialogue once it has been given)."""


class Loaded:
    """A registered student that answers. Made outside the event loop, opened inside it."""

    def __init__(self, folder: Path, device: str) -> None:
        self.card = read_card(folder)
        language_models: dict[Role, LanguageModel] = {}
        self.parts: dict[str, Completer] = {}
        self._models: list[LocalLanguageModel] = []
        for role in ROLES[self.card.kind]:
            model, tokenizer = load_part(folder / role)
            local = LocalLanguageModel(on_device(model, device), tokenizer, self.card.decoding)
            language_models[role] = local
            self._models.append(local)
            self.parts[str(role)] = Completer(model, tokenizer)
        self._grammars = grammars_of(tokenizer, language_of(tokenizer))
        self._max_chars = min(part.max_prompt_chars for part in self.parts.values())
        self._agent = agent_of(self.card, language_models)
        self.version = self._agent.version
        self._slots: OrderedDict[str, int] = OrderedDict()
        """Dialogue → the slot that is right behind it, the longest unused first."""
        self._spare: list[int] = []
        self._made = 0
        self._talking = 0
        """Chats that wait for a decision."""
        self._returning = Returning()
        self.under_way = 0
        """Requests that it has not answered yet; who asks counts them."""

    @property
    def name(self) -> str:
        """Who exactly answers."""
        return f"{self.card.policy_id}@{self.version}"

    def open(self) -> None:
        """Begin to decide."""
        self._batcher = Batcher(self._expected)
        self._tasks = [asyncio.create_task(self._batcher.run())]
        self._tasks += [asyncio.create_task(part.run(self._batcher)) for part in self.parts.values()]

    async def close(self) -> None:
        """Finish what is under way, then stop."""
        while self.under_way:
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()

    async def answers(self, request: ChatRequest) -> list[tuple[AnswerMessage, Decision]]:
        """What the agent says and does next, as often as was asked for; empty messages where it has nothing to say.

        Raises `ValueError` for a dialogue that does not end with what is seen now, or that is longer than what the
        student can read.
        """
        dialogue, written = self._tool_dialogue(request) if request.is_conversation else self._dialogue(request)
        return await asyncio.gather(*(self._decided(dialogue, written, sampling) for sampling in request.samplings))

    def _expected(self) -> int:
        """How many a batch should wait for."""
        return self._returning.quorum(self._talking, self._batcher.patience)

    def _dialogue(self, request: ChatRequest) -> tuple[Scene, _Written]:
        """A dialogue about a world that is told in text."""
        messages = request.messages
        self._check_length([*messages[:1], *messages[-RECENT:]])
        dialogue = scene(messages)

        def written(decision: Decision) -> tuple[AnswerMessage, str]:
            subgoal = decision.subgoal if decision.new_subgoal else ""
            answer = ParsedAnswer(decision.action or "", subgoal, decision.thought)
            text = render_answer(answer, dialogue.now.valid_actions) if decision.action is not None else ""
            return AnswerMessage("assistant", text), dialogue.continued(("assistant", text))

        return dialogue, written

    def _tool_dialogue(self, request: ChatRequest) -> tuple[Scene, _Written]:
        """A conversation with tools, which are called or answered about in text."""
        self._check_length(request.messages)
        raw = [{"role": message.role} | message.model_dump(exclude_defaults=True) for message in request.messages]
        dialogue = tool_scene(raw, request.tools, request.tool_choice, request.response_format.schema_text)
        self._check_grammar(dialogue.now)

        def written(decision: Decision) -> tuple[AnswerMessage, str]:
            answer = answer_of_action(decision.action or "", names_of(dialogue.now.tools or "[]"), dialogue.turns)
            return answer, dialogue.continued(spelling(answer))

        return dialogue, written

    def _check_length(self, messages: Sequence[Message]) -> None:
        if (chars := sum(len(message.text) for message in messages)) > self._max_chars:
            raise ValueError(f"{chars} characters are more than the student can read")

    def _check_grammar(self, seen: Observation) -> None:
        """Raises `ValueError` for schemas that no grammar can be made of: they would break everybody's batch."""
        try:
            self._grammars.matcher(Allowed(seen.tools or "[]", seen.must_call, seen.answer_schema))
        except (ConfigError, PolicyError) as error:
            raise ValueError(str(error)) from None

    async def _decided(
        self, dialogue: Scene, written: _Written, sampling: Sampling | None
    ) -> tuple[AnswerMessage, Decision]:
        before = dialogue.before.name
        slot = self._slots.pop(before, None) if dialogue.turns else None
        self._talking += 1
        self._returning.asked(before)
        try:
            if slot is None:
                slot = self._seat()
                await self._batcher.call(self._agent.begin, slot, dialogue.task, 0, dialogue.past())
            decision, _ = await self._batcher.decide(
                self._agent, Turn(slot, dialogue.now, dialogue.audit, sampling=sampling)
            )
            if decision.error == NOT_FINITE.reason:
                raise InfrastructureError(decision.error)
            if decision.error:
                raise ValueError(decision.error)
            answer, name = written(decision)
            same = self._slots.pop(name, None)
            self._slots[name] = slot
            self._returning.answered(name)
            slot = same
            return answer, decision
        finally:
            self._talking -= 1
            if slot is not None:
                self._spare.append(slot)

    async def complete(self, role: str, generation: GenerationRequest) -> Completion:
        """What one of its models says after a prompt."""
        return await self.parts[role].complete(generation)

    def _seat(self) -> int:
        """A slot for a dialogue that none is right behind."""
        if self._spare:
            return self._spare.pop()
        cached = sum(model.cached_bytes for model in self._models)
        if self._slots and (len(self._slots) >= DIALOGUES or cached * (self._made + 1) > CACHE_BYTES * self._made):
            return self._slots.popitem(last=False)[1]
        self._made += 1
        return self._made - 1
