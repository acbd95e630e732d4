"""Objects of the user's own code, by module and name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from flywheel.errors import ConfigError


@contextmanager
def _current_folder_last() -> Iterator[None]:
    """A module that was named is also looked for in the current folder, behind everything else: nothing hides there."""
    before = list(sys.path)
    sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        yield
    finally:
        sys.path[:] = before


def named_module(name: str) -> ModuleType:
    """A module, from where Python looks or from the current folder. Raises `ModuleNotFoundError`."""
    with _current_folder_last():
        return import_module(name)


def named_object(name: str) -> Any:
    """What `module:object` names. Raises `ConfigError`."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"'{name}' names no object; write module:object, as my_tools:score")
    try:
        return getattr(named_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"'{name}': {error}") from error
    except AttributeError:
        raise ConfigError(f"'{name}': the module {module} has no {attribute}") from None
