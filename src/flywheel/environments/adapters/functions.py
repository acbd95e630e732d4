"""Plain Python functions as tools: `search(query: str) -> str` with a docstring is all that an agent needs.

The schema of a tool is read from type hints and from a Google docstring, as transformers does for chat templates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from flywheel.environments.tool_environment import ToolWorld, asked, data_of, settings_of, tool_world
from flywheel.environments.tools import Toolbox, with_answer
from flywheel.errors import ConfigError
from flywheel.named_objects import named_object
from flywheel.trajectory import Task

PARAMETERS = ("functions", "score", "success")


class FunctionSession:
    """One episode of calls to functions that keep nothing. Implements `Session`."""

    over = False
    opening = ""

    def __init__(
        self, toolbox: Toolbox, functions: Mapping[str, Callable[..., Any]], score: Callable[..., Any], task: Task
    ) -> None:
        self.toolbox = toolbox
        self._functions, self._score, self._data = functions, score, data_of(task)
        self._calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        self._calls.append((name, arguments))
        return str(self._functions[name](**arguments))

    def score(self, answer: str | None) -> float:
        return asked(self._score, self._data, answer, self._calls)

    def close(self) -> None:
        pass


def schemas_of(functions: Sequence[Callable[..., Any]]) -> list[dict[str, Any]]:
    """The tools that functions are, in OpenAI's form. Raises `ConfigError` for one without hints or docstring."""
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        tools = [get_json_schema(function) for function in functions]
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ConfigError(
            f"a tool needs type hints and a docstring with Args: {' '.join(str(error).split())}"
        ) from error
    for tool in tools:
        tool["function"].pop("return", None)
    return tools


def open_world(parameters: str) -> AbstractContextManager[ToolWorld]:
    """`functions`: the tools, as module:function. `score`: module:function that is given the task's data, the agent's
    answer and its calls, and says how well it did; `success`: the score from which it counts, 1 if not told."""
    settings = settings_of(parameters, "functions", PARAMETERS, ("functions", "score"))
    functions = {function.__name__: function for function in map(named_object, settings["functions"])}
    if len(functions) < len(settings["functions"]):
        raise ConfigError("two functions have one name; tools need names of their own")
    if waits := [name for name, function in functions.items() if inspect.iscoroutinefunction(function)]:
        raise ConfigError(f"the function {waits[0]} is asynchronous; wrap it in one that waits, or use the adapter trl")
    toolbox = Toolbox(with_answer(schemas_of(list(functions.values()))))
    score = named_object(settings["score"])
    return tool_world(
        lambda: lambda task: FunctionSession(toolbox, functions, score, task), float(settings.get("success", 1.0))
    )
