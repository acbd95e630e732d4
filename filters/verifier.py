"""What a verifier is: it looks at finished trajectories and says, with evidence, how far each truly got.

A new verifier is one file beside this one and one line in `filters.catalog.VERIFIERS`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from flywheel.trajectory import Item, Trajectory, Verdict


class Verifier(Protocol):
    """Judges batches. `arguments` is canonical JSON; with name and version it says what made a verdict."""

    name: str
    version: str
    arguments: str

    def verify(self, trajectories: Sequence[Trajectory]) -> list[Verdict]: ...


def arguments(**values: float) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def verdict(
    verifier: Verifier,
    trajectory: Trajectory,
    *,
    completion: float,
    integrity: float,
    completion_threshold: float,
    integrity_threshold: float,
    items: Sequence[Item],
) -> Verdict:
    """Assemble a verdict; it passes when both completion and integrity reach their thresholds
    (Gym-Anything, arXiv 2604.06126: completion counts only where integrity holds)."""
    return Verdict(
        trajectory_id=trajectory.trajectory_id,
        verifier=verifier.name,
        version=verifier.version,
        arguments=verifier.arguments,
        completion=completion,
        integrity=integrity,
        completion_threshold=completion_threshold,
        integrity_threshold=integrity_threshold,
        passed=completion >= completion_threshold and integrity >= integrity_threshold,
        confidence=1.0,
        items=tuple(items),
        raw="",
    )
