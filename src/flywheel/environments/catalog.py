"""The environments by name. Adapters are imported when they are opened, so that none costs start-up time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from flywheel.environments.protocol import OpenWorld, World
from flywheel.errors import ConfigError

ENVIRONMENTS = {
    "cookingworld": "flywheel.environments.cookingworld",
}


def canonical(parameters: Mapping[str, Any]) -> str:
    """The one spelling of a set of parameters, as tasks and ids carry it."""
    return json.dumps(dict(parameters), sort_keys=True, separators=(",", ":"))


@contextmanager
def _current_folder_last() -> Iterator[None]:
    """A module that was named is also looked for in the current folder, behind everything else: nothing hides there."""
    before = list(sys.path)
    sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        yield
    finally:
        sys.path[:] = before


def open_world(name: str, parameters: str) -> AbstractContextManager[World]:
    """Start a simulator by its name here, or by the name of a module of yours. The module's `open_world` does
    the work."""
    module = ENVIRONMENTS.get(name, name)
    try:
        with _current_folder_last():
            start: OpenWorld = import_module(module).open_world
    except ModuleNotFoundError as error:
        if error.name == module:
            known = ", ".join(ENVIRONMENTS)
            raise ConfigError(f"unknown environment '{name}'; known: {known}, or a module of yours") from error
        raise ConfigError(f"environment '{name}': {error}") from error
    except AttributeError:
        raise ConfigError(f"environment '{name}': the module has no open_world(parameters)") from None
    return start(parameters)
