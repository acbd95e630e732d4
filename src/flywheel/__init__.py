"""Flywheel: collect, verify, store, distill, gate and redeploy agent trajectories.

`Lake`, `Config`, `Trajectory`, `load_config`, `register_models` and `report` are imported when first asked for; the
stages of a turn are functions of `flywheel.stages`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flywheel.agents.inference.token_shift import register_models
    from flywheel.config.root import Config
    from flywheel.config.root import load as load_config
    from flywheel.datasets.lake.lake import Lake
    from flywheel.gateway.client import report
    from flywheel.trajectory import Trajectory

__version__ = "0.1.0"
__all__ = ["Config", "Lake", "Trajectory", "__version__", "load_config", "register_models", "report"]
_LAZY = {
    "Config": ("flywheel.config.root", "Config"),
    "Lake": ("flywheel.datasets.lake.lake", "Lake"),
    "Trajectory": ("flywheel.trajectory", "Trajectory"),
    "load_config": ("flywheel.config.root", "load"),
    "register_models": ("flywheel.agents.inference.token_shift", "register_models"),
    "report": ("flywheel.gateway.client", "report"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flywheel' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)
