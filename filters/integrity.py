"""Integrity: cheating, and nothing else; an honest failure keeps it (Gym-Anything, arXiv 2604.06126)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flywheel.filters.batch import Batch, Floats
from flywheel.filters.checks import CHECKS, Check
from flywheel.filters.verifier import arguments, verdicts
from flywheel.trajectory import Item, Verdict


class Integrity:
    """Integrity: the share of checks that hold; all of them must. Completion: 100 × the claimed score."""

    name = "integrity"
    version = "1"

    def __init__(self) -> None:
        self.arguments = arguments()

    def verify(self, batch: Batch) -> list[Verdict]:
        holds, items = checklist(batch, CHECKS)
        return verdicts(
            self,
            batch,
            completion=100 * batch.numbers("score"),
            completion_threshold=100.0,
            integrity=holds,
            items=items,
        )


def checklist(batch: Batch, checks: Mapping[str, Check]) -> tuple[Floats, list[list[Item]]]:
    """(share of the checks that hold for each trajectory, its items)."""
    held = {name: check(batch) for name, check in checks.items()}
    table = np.stack(list(held.values()), axis=1)
    good = {name: Item(name, 0.0, 1.0, "holds") for name in held}
    bad = {name: Item(name, 0.0, 0.0, "does not hold") for name in held}
    items = [[good[name] if ok else bad[name] for name, ok in zip(held, row, strict=True)] for row in table.tolist()]
    return table.mean(axis=1), items
