"""The stages of a turn as functions of a config and a lake: what flows and commands call, for scripts and notebooks.

All of them can be called again: what is done is found, what is missing is done. Raises `FlywheelError` in one line
where the user can mend something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from flywheel.collect.stage import collect as collect_iteration
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill as distill_student
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.evaluate import Rate
from flywheel.evaluation.evaluate import evaluate as evaluate_policy
from flywheel.evaluation.promotion import gate, opponent_of
from flywheel.filters.curate import curate as curate_lake
from flywheel.policies.card import PolicyCard
from flywheel.policies.registry import champion
from flywheel.trajectory import Split

Progress = Callable[[int], None]
"""Called with the number of episodes that are done."""


def collect(
    config: Config, lake: Lake, *, iteration: int = 1, progress: Progress = lambda done: None
) -> dict[str, int]:
    """Play an iteration's training tasks with teachers and champion; episodes by policy."""
    return collect_iteration(config, lake, iteration, champion(lake), progress)


def curate(config: Config, lake: Lake, *, progress: Progress = lambda done: None) -> dict[str, int]:
    """Segment, verify, compare and route what was not curated yet; trajectories by route."""
    return curate_lake(config, lake, progress)


def distill(
    config: Config,
    lake: Lake,
    kind: Literal["hierarchical", "flat"] = "hierarchical",
    *,
    iteration: int = 1,
    where: str = "",
    dataset: str = "",
) -> PolicyCard:
    """Clone a student from verified trajectories and finetune it as `train.finetune` says.

    It learns from all up to an iteration, or from exactly what an SQL condition over `trajectories` selects, or from a
    dataset version (name@v3). Losses in `metrics` are nats a target token.
    """
    return distill_student(config, lake, kind, iteration, condition=where, dataset=dataset)


def evaluate(
    config: Config,
    lake: Lake,
    policy: str,
    *,
    split: Split = Split.TEST,
    iteration: int = 1,
    progress: Progress = lambda done: None,
) -> Rate:
    """P(verified) of a policy on held-out tasks, with a 95 % Wilson interval; broken episodes are left out."""
    return evaluate_policy(config, lake, policy, split, iteration, progress)


def promote(
    config: Config, lake: Lake, challenger: str, *, iteration: int = 1, progress: Progress = lambda done: None
) -> GateDecision:
    """Let a challenger meet the champion on an iteration's dev tasks, in an exact paired test (McNemar 1947); it
    becomes champion where it is better at `gate.alpha` and no slice is worse."""
    (decision,) = gate(config, lake, [challenger], opponent_of(config, champion(lake)), iteration, progress)
    return decision
