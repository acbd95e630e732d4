"""TRL's `environment_factory` contract: what TRL's GRPOTrainer trains on, plays here.

An object with `reset(**columns)`, methods that are tools, and `get_reward()`. OpenReward's, OpenEnv's and Harbor's
integrations are such objects (https://huggingface.co/docs/trl/openenv, section on `environment_factory`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from flywheel.environments.adapters.functions import schemas_of
from flywheel.environments.tool_environment import Begin, ToolWorld, asked, data_of, settings_of, tool_world
from flywheel.environments.tools import Toolbox, with_answer
from flywheel.errors import InfrastructureError, named_reason
from flywheel.named_objects import named_object
from flywheel.trajectory import Task

PARAMETERS = ("factory", "success")
NO_TOOLS = frozenset({"reset", "get_reward"})


class ContractSession:
    """One episode of such an object. Implements `Session`."""

    def __init__(self, environment: Any, task: Task, portal: BlockingPortal) -> None:
        self._environment, self._portal = environment, portal
        names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
        self._tools = {
            name: getattr(environment, name) for name in names if not name.startswith("_") and name not in NO_TOOLS
        }
        self.toolbox = Toolbox(with_answer(schemas_of(list(self._tools.values()))))
        columns = data_of(task) or {}
        prompt = [{"role": "user", "content": task.instruction}]
        try:
            shown = self._awaited(lambda: environment.reset(**{"prompt": prompt, **columns}))
        except Exception as error:
            raise InfrastructureError(f"the environment cannot be reset: {named_reason(error)}") from error
        self.opening = _text(shown)

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        return _text(self._awaited(lambda: self._tools[name](**arguments)))

    @property
    def over(self) -> bool:
        """TRL has no word for it; its own integrations call it `finished` or `done`."""
        return any(getattr(self._environment, name, False) is True for name in ("finished", "done"))

    def score(self, answer: str | None) -> float:
        environment = self._environment
        if hasattr(environment, "get_reward"):
            return asked(lambda: self._awaited(environment.get_reward))
        return asked(lambda: environment.reward or 0.0)

    def close(self) -> None:
        pass

    def _awaited(self, function: Callable[[], Any]) -> Any:
        """What a method returns, or what the coroutine that it returns returns."""
        value = function()
        return self._portal.call(_wait, value) if inspect.isawaitable(value) else value


def _seat(environment: Any, portal: BlockingPortal) -> Begin:
    """One object for all episodes of an environment, which is reset for each, as TRL does it."""
    return lambda task: ContractSession(environment, task, portal)


async def _wait(value: Any) -> Any:
    return await value


def _text(value: Any) -> str:
    """What a tool returned as text; content parts are joined."""
    if isinstance(value, list):
        return "\n".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in value)
    return "" if value is None else str(value)


@contextmanager
def open_world(parameters: str) -> Iterator[ToolWorld]:
    """`factory`: module:object that makes an environment when it is called; tasks' `data` are the columns that `reset`
    is given. `success`: the reward from which a task counts as solved, 1 if not told."""
    settings = settings_of(parameters, "trl", PARAMETERS, ("factory",))
    factory = named_object(settings["factory"])
    with (
        start_blocking_portal("asyncio") as portal,
        tool_world(lambda: _seat(factory(), portal), float(settings.get("success", 1.0))) as world,
    ):
        yield world
