"""Tool calls as actions: schemas, what is wrong with a call, and results as observations.

A call that cannot be made is the agent's fault: it is answered with an error, and the episode goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from flywheel.environments.protocol import Observation
from flywheel.errors import ConfigError, FlywheelError
from flywheel.messages import Message, ToolCall, calls_of, text_of_inputs
from flywheel.text import strict_json


def tool(name: str, description: str, **arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form, all of whose arguments are required. `arguments`: name → JSON Schema."""
    schema = {"type": "object", "properties": arguments, "required": list(arguments), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


ANSWER = "answer"
"""The tool by which an agent ends a task that only its own word ends."""
ANSWER_TOOL = tool(ANSWER, "Say the answer, or that you are done. This ends the task.", text={"type": "string"})


class CallError(ValueError):
    """A call that cannot be made, in one line that says why."""


def with_answer(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tools, and the one that answers. Raises `ConfigError` where one of them has its name."""
    if any(tool["function"]["name"] == ANSWER for tool in tools):
        raise ConfigError(f"a tool is called '{ANSWER}', which is how a task ends here; rename it")
    return [*tools, ANSWER_TOOL]


class Toolbox:
    """The tools of a world, in OpenAI's form. Raises `ConfigError` for a tool without a name or with a bad schema."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self.text = json.dumps(list(tools), ensure_ascii=False)
        self._validators: dict[str, Draft202012Validator] = {}
        for tool in tools:
            name, schema = tool["function"]["name"], tool["function"].get("parameters") or {"type": "object"}
            if not name or any(letter.isspace() for letter in name) or name in self._validators:
                raise ConfigError(f"a tool is called '{name}'; names are words, each another one")
            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ConfigError(f"tool '{name}': its parameters are no JSON schema: {error.message}") from error
            self._validators[name] = Draft202012Validator(schema)

    def arguments(self, call: ToolCall) -> dict[str, Any]:
        """What a call hands over. Raises `CallError` for an unknown tool, and for arguments that do not fit."""
        if call.name not in self._validators:
            raise CallError(f"there is no tool '{call.name[:80]}'; there are: {', '.join(self._validators)}")
        try:
            given = strict_json(call.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise CallError(f"the arguments of {call.name} are no JSON: {error}") from None
        if problem := best_match(self._validators[call.name].iter_errors(given)):
            where = "".join(f"[{part!r}]" for part in problem.absolute_path)
            raise CallError(f"the arguments of {call.name}{where} do not fit: {problem.message[:200]}")
        if not isinstance(given, dict):
            raise CallError(f"the arguments of {call.name} are no object")
        return given

    def results(self, action: str, run: Callable[[str, dict[str, Any]], str]) -> tuple[Message, ...]:
        """What each call of an action returned, or why it could not be made. What `run` raises is told as an error,
        but for errors of Flywheel's own."""
        return tuple(self._result(call, run) for call in calls_of(action)) or (
            Message("tool", error=f"no tool was called; there are: {', '.join(self._validators)}"),
        )

    def _result(self, call: ToolCall, run: Callable[[str, dict[str, Any]], str]) -> Message:
        try:
            return Message("tool", run(call.name, self.arguments(call)), name=call.name)
        except FlywheelError:
            raise
        except CallError as wrong:
            return Message("tool", error=str(wrong))
        except Exception as error:
            return Message("tool", name=call.name, error=f"{type(error).__name__}: {error}")

    def observation(self, messages: Sequence[Message]) -> Observation:
        """What the agent is told, with the tools that it may call."""
        return Observation(text_of_inputs(messages), whole=True, tools=self.text, messages=tuple(messages))


def names_of(tools: str) -> list[str]:
    """The names of tools, from their JSON in OpenAI's form."""
    return [tool["function"]["name"] for tool in json.loads(tools)]
