"""Outcome: the environment's own claim, where the record does not contradict it."""

from __future__ import annotations

import numpy as np

from flywheel.filters.batch import TrajectoryBatch
from flywheel.filters.verifiers.checks import CLAIMS
from flywheel.filters.verifiers.integrity import checklist
from flywheel.filters.verifiers.protocol import arguments, verdicts
from flywheel.trajectory import Verdict


class Outcome:
    """The environment's claim.

    Completion: 100 × score, or success where no score is told. Integrity: the share of checks of the claim that hold.
    """

    name = "outcome"
    version = "2"

    def __init__(self, *, score_threshold: float = 1.0) -> None:
        self.arguments = arguments(score_threshold=score_threshold)
        self._threshold = 100 * score_threshold

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        holds, items = checklist(batch, CLAIMS)
        score, success = batch.numbers("score"), batch.numbers("success") > 0
        return verdicts(
            self,
            batch,
            completion=np.minimum(100 * np.where(np.isnan(score), success, score), np.where(success, 100, 99)),
            completion_threshold=min(self._threshold, 100 if self._threshold >= 100 else 99),
            integrity=holds,
            items=items,
        )
