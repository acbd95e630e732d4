"""The algorithms by name. A new one is a file beside this one, a class in `config.algorithms`, and a line here."""

from __future__ import annotations

from typing import Any

from flywheel.config.algorithms import FinetuneConfig
from flywheel.distill.algorithms.awr import AWR
from flywheel.distill.algorithms.bc import BC
from flywheel.distill.algorithms.dpo import DPO
from flywheel.distill.algorithms.grpo import GRPO
from flywheel.distill.algorithms.kd import KD
from flywheel.distill.algorithms.ppo import PPO
from flywheel.distill.algorithms.protocol import Algorithm
from flywheel.errors import ConfigError

ALGORITHMS: dict[str, Any] = {"bc": BC, "awr": AWR, "kd": KD, "dpo": DPO, "ppo": PPO, "grpo": GRPO}


def make_algorithm(settings: FinetuneConfig, kind: str) -> Algorithm:
    """Raises `ConfigError` where the algorithm cannot finetune students of a kind."""
    if kind not in settings.kinds:
        known = " and ".join(settings.kinds)
        raise ConfigError(f"{settings.algorithm} finetunes {known} students alone; set --kind {settings.kinds[0]}")
    algorithm: Algorithm = ALGORITHMS[settings.algorithm](settings)
    return algorithm
