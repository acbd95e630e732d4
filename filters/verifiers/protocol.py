"""The verifier protocol: finished trajectories in, a verdict with evidence for each out.

A new verifier is one file beside this one and one line in `filters.verifiers.catalog.VERIFIERS`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flywheel.filters.batch import Floats, TrajectoryBatch
from flywheel.trajectory import Item, Verdict

LEAVE_OUT = "leave it out of curate.verifiers"
"""What to do about a verifier that an environment cannot serve."""


class Verifier(Protocol):
    """Judges batches. `arguments` is canonical JSON; with name and version it says what made a verdict."""

    name: str
    version: str
    arguments: str

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        """A verdict a trajectory, in the batch's order."""
        ...


def arguments(**values: object) -> str:
    """The one spelling of a verifier's arguments."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def verdicts(
    verifier: Verifier,
    batch: TrajectoryBatch,
    *,
    completion: Floats,
    completion_threshold: float,
    integrity: Floats | None = None,
    integrity_threshold: float = 1.0,
    items: Sequence[Sequence[Item]],
    confidence: Floats | None = None,
    raw: Sequence[str] | None = None,
) -> list[Verdict]:
    """Assemble verdicts from completion A_N in [0, 100] and integrity B_N in [0, 1].

    One passes when both reach their thresholds (Gym-Anything, arXiv 2604.06126: completion counts only where
    integrity holds). `integrity` None: the verifier says nothing of it.
    """
    sure = np.ones(len(batch))
    integrity, confidence = sure if integrity is None else integrity, sure if confidence is None else confidence
    passed = (completion >= completion_threshold) & (integrity >= integrity_threshold)
    now = time.time()
    return [
        Verdict(
            trajectory_id=trajectory_id,
            verifier=verifier.name,
            version=verifier.version,
            arguments=verifier.arguments,
            completion=float(completion[row]),
            integrity=float(integrity[row]),
            completion_threshold=completion_threshold,
            integrity_threshold=integrity_threshold,
            passed=bool(passed[row]),
            confidence=float(confidence[row]),
            items=tuple(items[row]),
            raw=raw[row] if raw else "",
            created_at=now,
        )
        for row, trajectory_id in enumerate(batch.ids)
    ]
