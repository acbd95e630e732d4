"""Process: limits on idling, loops, invalid actions and detours of an episode.

Cheap signals of UI-TARS-2 (arXiv 2509.02544) and Gym-Anything (arXiv 2604.06126); flaws of process are no cheats.
"""

from __future__ import annotations

import numpy as np

from flywheel.environments.capabilities import solver
from flywheel.environments.protocol import World
from flywheel.filters.batch import Bools, Floats, TrajectoryBatch
from flywheel.filters.verifiers.protocol import arguments, verdicts
from flywheel.trajectory import Item, Verdict


class Process:
    """Completion: 100 × claimed score × share of the limits that are kept; below 99 without success.

    `max_idle`, `max_loops`, `max_invalid`: shares of the steps. `max_detour`: steps as a multiple of the expert's;
    0 does not ask the expert.
    """

    name = "process"
    version = "1"

    def __init__(
        self,
        world: World | None = None,
        *,
        max_idle: float = 0.34,
        max_loops: float = 0.34,
        max_invalid: float = 0.25,
        max_detour: float = 3.0,
    ) -> None:
        self.arguments = arguments(
            max_idle=max_idle, max_loops=max_loops, max_invalid=max_invalid, max_detour=max_detour
        )
        self._solver = solver(world, "the verifier process", "set its max_detour = 0") if world and max_detour else None
        self._limits = {"idle": max_idle, "loops": max_loops, "invalid": max_invalid, "detour": max_detour}

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        shares = signals(batch)
        if self._solver is not None:
            experts = [len(self._solver.facts(task).gold_actions) for task in batch.tasks]
            shares["detour"] = batch.lengths_N / np.maximum(experts, 1)
        kept = np.stack([value <= self._limits[name] + 1e-9 for name, value in shares.items()], axis=1)
        success = batch.numbers("success") > 0
        rows = [shares[name].tolist() for name in shares]
        items = [
            [
                Item(f"{name} within {self._limits[name]:g}", 100 / len(shares), float(ok), f"{value:.3f}")
                for name, ok, value in zip(shares, oks, values, strict=True)
            ]
            for oks, values in zip(kept.tolist(), zip(*rows, strict=True), strict=True)
        ]
        return verdicts(
            self,
            batch,
            completion=np.where(success, 100.0, np.minimum(100 * np.nan_to_num(batch.numbers("score")), 99.0))
            * kept.mean(axis=1),
            completion_threshold=100.0,
            items=items,
        )


def signals(batch: TrajectoryBatch) -> dict[str, Floats]:
    """Shares of each trajectory's steps (N,): that changed nothing, that repeated an action, that were not offered."""
    steps = np.maximum(batch.lengths_N, 1)
    return {
        "idle": batch.sum_of(batch.state_T == batch.next_state_T) / steps,
        "loops": batch.sum_of(repeated(batch)) / steps,
        "invalid": batch.sum_of(~batch.on_offer_T) / steps,
    }


def repeated(batch: TrajectoryBatch) -> Bools:
    """(T,): was the same action taken in the same state before, in the same episode?"""
    state_actions = np.stack([batch.owner_T, batch.state_T, batch.action_T], axis=1)
    _, first = np.unique(state_actions, axis=0, return_index=True)
    mask = np.ones(len(state_actions), np.bool_)
    mask[first] = False
    return mask
