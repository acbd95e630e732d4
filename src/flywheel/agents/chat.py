"""Policies behind chat servers: any model that follows instructions, or a student that Flywheel serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flywheel.agents.contexts.chat_format import (
    STOP,
    ParsedAnswer,
    parse_answer,
    render_answer,
    render_observation,
    spelt,
)
from flywheel.agents.contexts.memory import Memory
from flywheel.agents.inference.endpoint import Answer, Endpoint
from flywheel.agents.policy import AsyncPolicy, Decision, Past, Turn
from flywheel.agents.tool_dialogue import COMPLAINT, ToolDialogue, answer_of, decision_of, recorded_answer
from flywheel.config.agents import ChatConfig
from flywheel.environments.protocol import Observation
from flywheel.errors import InfrastructureError
from flywheel.trajectory import StopReason, Task, digest
from flywheel.unknowns import known_sum

SYSTEM = (
    "You act in an environment, one action a turn, until the task is solved. After each action you are told what came "
    "of it. Answer with one line `Action: …`. You may write `Thought: …` and `Subgoal: …` on lines before it. Where "
    "actions are listed, choose one of them, word for word. For example:\nThought: something may be in the fridge\n"
    "Action: open fridge\nIf nothing is left to do, answer "
)
CUE = "Answer with one line `Action: …`."
DECIDING = {"base_url", "model", "temperature", "max_tokens", "tools", "window", "corrections"}
"""Settings that make another policy."""
TOOL = "act"
EXCERPT = 200


@dataclass(slots=True)
class Dialogue:
    """What one episode's model is shown: the task, what it should remember, and its last turns in full.

    When more than `window` turns are shown, half of them go into memory, so that most requests extend the one before.
    """

    instruction: str
    window: int
    turns: list[tuple[Observation, str, str]] = field(default_factory=list)
    """(observation, its text, answer)."""
    memory: Memory = field(default_factory=Memory)

    def messages(self, finish: str | None, now: str) -> list[dict[str, str]]:
        lines = [f"Task: {self.instruction}"]
        lines += [f"Document: {document}" for document in self.memory.documents]
        lines += [f"From {location}, {action} leads to {to}." for location, action, to in self.memory.routes]
        done, failed = self.memory.earlier
        if self.memory.past:
            lines.append(f"Done before ({done + failed} steps more before that): {'; '.join(self.memory.past)}")
        texts = [text for _, text, _ in self.turns] + [now]
        texts[0] = "\n".join([*lines, texts[0]])
        messages = [{"role": "system", "content": SYSTEM + f"`Action: {finish or STOP}`."}]
        for text, (_, _, answer) in zip(texts, self.turns, strict=False):
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": f"{texts[-1]}\n\n{CUE}"}]

    def add(self, seen: Observation, text: str, parsed: ParsedAnswer) -> None:
        self.turns.append((seen, text, render_answer(parsed, seen.valid_actions)))
        if self.window and len(self.turns) > self.window:
            for number in range(self.window // 2 + 1):
                before, _, answer = self.turns[number]
                after = self.turns[number + 1][0]
                action = (parse_answer(answer, before.valid_actions) or ParsedAnswer(answer)).action
                self.memory = (
                    self.memory.did(action).read(after.document).moved(before.location, action, after.location)
                )
            self.turns = self.turns[self.window // 2 + 1 :]


@dataclass(slots=True)
class _Asked:
    """What the answers to one turn took together."""

    answers: list[Answer] = field(default_factory=list)

    def decision(self, parsed: ParsedAnswer | None, finish: str | None, error: str = "") -> Decision:
        last = self.answers[-1]
        decision = Decision(
            action=parsed.action if parsed else None,
            subgoal=parsed.subgoal if parsed else "",
            new_subgoal=bool(parsed and parsed.subgoal),
            thought="\n".join(filter(None, (last.thought, parsed.thought if parsed else ""))),
            prompt_tokens=known_sum(answer.prompt_tokens for answer in self.answers),
            completion_tokens=known_sum(answer.completion_tokens for answer in self.answers),
            cost=known_sum(answer.cost for answer in self.answers),
            logprobs=last.logprobs,
            top_tokens=last.top_tokens,
            top_logprobs=last.top_logprobs,
            stop=StopReason.GAVE_UP if parsed else StopReason.MALFORMED,
            error=error,
        )
        stops = parsed is not None and finish is None and parsed.action.strip().casefold() == STOP
        return replace(decision, action=None) if stops else decision


class ChatPolicy:
    """A chat model that reads observations as text. What cannot be parsed is requested again, with the reason."""

    def __init__(self, settings: ChatConfig) -> None:
        self.name = "chat"
        asked = settings.model_dump(include=DECIDING)
        self.policy_id = f"chat-{digest(asked, SYSTEM, CUE, size=4)}"
        self.version = "1"
        self._settings = settings
        self._endpoint = Endpoint("chat policy", settings)
        self._dialogues: dict[int, Dialogue] = {}
        self._tool_dialogues: dict[int, ToolDialogue] = {}
        self._seeds: dict[int, int] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        dialogue = self._dialogues[slot] = Dialogue(task.instruction, self._settings.window)
        tool_dialogue = self._tool_dialogues[slot] = ToolDialogue(task.instruction, self._settings.window)
        self._seeds[slot] = int(digest(task.task_id, attempt, size=3), 16)
        for observation, decision in past:
            if observation.tools is not None:
                tool_dialogue.add(observation, recorded_answer(decision))
                continue
            dialogue.add(observation, render_observation(observation), _as_answer(decision))

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return asyncio.run(_together(self, turns))

    async def decide(self, turn: Turn) -> Decision:
        if turn.observation.tools is not None:
            return await self._call(turn, turn.observation.tools)
        dialogue, seen = self._dialogues[turn.slot], turn.observation
        text, asked = render_observation(seen, audit=turn.audit), _Asked()
        messages = dialogue.messages(seen.finish, text)
        options: dict[str, Any] = {"temperature": self._settings.temperature, "seed": self._seeds[turn.slot]}
        if self._settings.tools:
            options |= {"tools": [_tool(seen)], "tool_choice": {"type": "function", "function": {"name": TOOL}}}
        for _ in range(1 + self._settings.corrections):
            answer = await self._endpoint.complete(messages, **options)
            asked.answers.append(answer)
            if parsed := _read(answer, seen):
                dialogue.add(seen, text, parsed)
                return asked.decision(parsed, seen.finish)
            unread = answer.text or json.dumps(dict(answer.arguments or {}))
            complaint = f"No action could be read from this. {CUE}"
            messages = [*messages, {"role": "assistant", "content": unread}, {"role": "user", "content": complaint}]
        return asked.decision(None, seen.finish, f"no action in: {unread[:EXCERPT]}")

    async def _call(self, turn: Turn, tools: str) -> Decision:
        """The next tool calls, by the API's own means."""
        dialogue, asked = self._tool_dialogues[turn.slot], _Asked()
        messages = dialogue.messages(turn.observation, turn.audit)
        options = {"temperature": self._settings.temperature, "seed": self._seeds[turn.slot]}
        offered = {"tools": listed} if (listed := json.loads(tools)) else {}
        for _ in range(1 + self._settings.corrections):
            answer = await self._endpoint.complete(messages, **offered, **options)
            asked.answers.append(answer)
            if message := answer_of(answer, tools):
                dialogue.add(turn.observation, message)
                return decision_of(message, asked.decision(ParsedAnswer(""), ""))
            messages = [
                *messages,
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": COMPLAINT},
            ]
        return asked.decision(None, None, f"no tool call in: {answer.text[:EXCERPT]}")

    async def close(self) -> None:
        await self._endpoint.close()


class ServedPolicy:
    """A student behind `flywheel serve-policy`. Each step carries the id of the student that answered, which may
    change in the middle of an episode when another one is promoted."""

    def __init__(self, settings: ChatConfig) -> None:
        self.name = "served"
        self.policy_id = f"served-{digest(settings.base_url, settings.model, size=4)}"
        self.version = "1"
        self._endpoint = Endpoint("served student", settings)
        self._histories: dict[int, tuple[str, list[dict[str, str]]]] = {}

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        messages = [{"role": "system", "content": task.instruction}]
        for observation, decision in past:
            parsed = _as_answer(decision)
            messages.append({"role": "user", "content": render_observation(observation, whole=True)})
            messages.append({"role": "assistant", "content": render_answer(parsed, observation.valid_actions)})
        self._histories[slot] = digest("episode", task.task_id, attempt), messages

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return asyncio.run(_together(self, turns))

    async def decide(self, turn: Turn) -> Decision:
        episode, history = self._histories[turn.slot]
        asked = [
            *history,
            {"role": "user", "content": render_observation(turn.observation, audit=turn.audit, whole=True)},
        ]
        answer = await self._endpoint.complete(asked, user=episode)
        student, _, version = answer.model.partition("@")
        parsed = parse_answer(answer.text, turn.observation.valid_actions)
        if parsed is not None:
            history += [
                {"role": "user", "content": render_observation(turn.observation, whole=True)},
                {"role": "assistant", "content": answer.text},
            ]
        return Decision(
            action=parsed.action if parsed else None,
            subgoal=parsed.subgoal if parsed else "",
            new_subgoal=bool(parsed and parsed.subgoal),
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cost=answer.cost,
            policy_id=student,
            policy_version=version,
        )

    async def close(self) -> None:
        await self._endpoint.close()


async def _together(policy: AsyncPolicy, turns: Sequence[Turn]) -> list[Decision]:
    """Every turn's decision; a turn that the server fails breaks its own episode alone."""

    async def decided(turn: Turn) -> Decision:
        try:
            return await policy.decide(turn)
        except InfrastructureError as broken:
            return Decision(None, stop=StopReason.INFRASTRUCTURE, error=str(broken))

    try:
        return list(await asyncio.gather(*map(decided, turns)))
    finally:
        await policy.close()


def _tool(seen: Observation) -> dict[str, Any]:
    """The one tool of a turn; its argument's values are the valid actions, where the environment lists them."""
    action: dict[str, Any] = {"type": "string"}
    if seen.valid_actions is not None:
        action["enum"] = list(seen.valid_actions)
    return {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Do one thing in the environment.",
            "parameters": {
                "type": "object",
                "properties": {"thought": {"type": "string"}, "subgoal": {"type": "string"}, "action": action},
                "required": ["action"],
            },
        },
    }


def _as_answer(decision: Decision) -> ParsedAnswer:
    """What the model would have answered, had it decided so; a subgoal is named where it is new."""
    return ParsedAnswer(decision.action or "", decision.subgoal if decision.new_subgoal else "", decision.thought)


def _read(answer: Answer, seen: Observation) -> ParsedAnswer | None:
    """A tool call's arguments, or a line of text."""
    given: Mapping[str, Any] = answer.arguments or {}
    if isinstance(given.get("action"), str) and given["action"]:
        subgoal, thought = (str(given.get(name) or "") for name in ("subgoal", "thought"))
        return ParsedAnswer(spelt(given["action"], seen.valid_actions or ()), subgoal, thought)
    return parse_answer(answer.text, seen.valid_actions)
