"""Ensemble: several verifiers as one, by a rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel.errors import ConfigError
from flywheel.filters.batch import TrajectoryBatch
from flywheel.filters.verifiers.protocol import Verifier, arguments, verdicts
from flywheel.trajectory import Item, Verdict

RULES = {"all": 100.0, "majority": 50.0 + 1e-9, "any": 1e-9}
"""Share of the members, in percent, that must pass."""


class Ensemble:
    """Completion: percentage of members that pass. Integrity: the lowest that a member denies, else 1.

    Confidence: how far the members agree.
    """

    name = "ensemble"
    version = "1"

    def __init__(self, members: Sequence[Verifier], *, rule: str = "majority") -> None:
        if rule not in RULES:
            raise ConfigError(f"unknown rule '{rule}' of an ensemble; known: {', '.join(RULES)}")
        if len(members) < 2:
            raise ConfigError('an ensemble needs members = ["…", "…"], at least two')
        self._members, self._threshold = members, RULES[rule]
        self.arguments = arguments(
            rule=rule, members=[f"{member.name}@{member.version} {member.arguments}" for member in members]
        )

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        member_verdicts = [member.verify(batch) for member in self._members]
        passed = np.array([[verdict.passed for verdict in row] for row in member_verdicts], np.float64).reshape(
            len(member_verdicts), -1
        )
        denied = [
            [verdict.integrity if verdict.integrity < verdict.integrity_threshold else 1.0 for verdict in row]
            for row in member_verdicts
        ]
        share = passed.mean(axis=0)
        points = 100 / len(member_verdicts)
        return verdicts(
            self,
            batch,
            completion=100 * share,
            completion_threshold=self._threshold,
            integrity=np.array(denied, np.float64).reshape(len(member_verdicts), -1).min(axis=0),
            items=[
                [Item(verdict.verifier, points, float(verdict.passed), _why(verdict)) for verdict in row]
                for row in zip(*member_verdicts, strict=True)
            ],
            confidence=np.maximum(share, 1 - share),
        )


def _why(verdict: Verdict) -> str:
    if verdict.passed:
        return f"passed with {verdict.completion:.0f}"
    return next((f"{item.name}: {item.evidence}" for item in verdict.items if item.fraction < 1), "did not pass")
