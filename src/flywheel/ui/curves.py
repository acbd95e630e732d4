"""Training curves of a student, from the TensorBoard files beside the lake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flywheel import charts
from flywheel.policies.card import ROLES, TRACKING

POINTS = 400
"""Points of a curve that are kept, a sample of them."""
_UNTOLD = {"learning_rate", "gradient_norm", "tokens_per_second"}


def curves(root: Path, policy_id: str) -> list[dict[str, Any]]:
    """Points of what was measured while a student's models were trained: role, measure, update, value."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    points = []
    for role in ROLES.get(policy_id.partition("-")[0], ()):
        folder = root / TRACKING / policy_id / role
        if not folder.is_dir():
            continue
        events = EventAccumulator(str(folder), size_guidance={SCALARS: POINTS})
        events.Reload()
        for measure in events.Tags()[SCALARS]:
            if measure not in _UNTOLD:
                points += [
                    {"role": str(role), "measure": measure, "update": event.step, "value": event.value}
                    for event in events.Scalars(measure)
                ]
    return points


def drawings(root: Path, policy_id: str) -> dict[str, str]:
    """A plot a measure, a line a role."""
    points = curves(root, policy_id)
    measures = dict.fromkeys(point["measure"] for point in points)
    return {
        measure: charts.svg(
            charts.lines([point for point in points if point["measure"] == measure], "update", "value", "role")
        )
        for measure in measures
    }
