"""The environments by name. Adapters are imported when they are opened, so that none costs start-up time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module

from flywheel.environments.protocol import OpenWorld, World
from flywheel.errors import ConfigError

ENVIRONMENTS = {
    "cookingworld": "flywheel.environments.cookingworld",
}


def canonical(parameters: Mapping[str, int]) -> str:
    """The one spelling of a set of parameters, as tasks and ids carry it."""
    return json.dumps(dict(parameters), sort_keys=True, separators=(",", ":"))


def open_world(name: str, parameters: str) -> AbstractContextManager[World]:
    """Start the named simulator. The adapter module's `open_world` does the work."""
    if name not in ENVIRONMENTS:
        raise ConfigError(f"unknown environment '{name}'; known: {', '.join(ENVIRONMENTS)}")
    start: OpenWorld = import_module(ENVIRONMENTS[name]).open_world
    return start(parameters)
