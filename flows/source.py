"""Where a deployed run's settings are: in a file, which is read anew each time, or in the deployment itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flywheel.config.root import Config, load, make

SOURCE = ("config_file", "overrides", "settings")
"""The parameters of a deployment that say so."""


def settings_of(
    config_file: str | None = None, overrides: list[str] | None = None, settings: dict[str, Any] | None = None
) -> Config:
    """The settings of a run. Raises `ConfigError`."""
    if config_file:
        return load(Path(config_file), overrides or [])
    return make(settings or {}, overrides or [])
