"""Agreement of a verifier with ground truth: pure functions over (N,) truths and verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel.filters.batch import Bools, Floats

BINS = 10


@dataclass(frozen=True, slots=True)
class Agreement:
    """Precision and recall of "passed" for true success; 1 where nothing was passed, or nothing was true."""

    precision: float
    recall: float
    kappa: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Episodes whose predicted chance of success lies together: mean prediction, share that succeeded, how many."""

    predicted: float
    observed: float
    count: int


def agreement(truth: Bools, passed: Bools) -> Agreement:
    """Precision, recall and Cohen's kappa (Cohen 1960): agreement beyond what the margins give by chance."""
    hits = int((truth & passed).sum())
    observed = float((truth == passed).mean())
    chance = float(truth.mean() * passed.mean() + (~truth).mean() * (~passed).mean())
    return Agreement(
        precision=hits / int(passed.sum()) if passed.any() else 1.0,
        recall=hits / int(truth.sum()) if truth.any() else 1.0,
        kappa=(observed - chance) / (1 - chance) if chance < 1 else float(observed == 1),
    )


def reliability(truth: Bools, predicted: Floats) -> list[Bin]:
    """The reliability diagram (Murphy & Winkler 1977): ten bins of equal width, empty ones left out."""
    place = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    return [
        Bin(float(predicted[mine].mean()), float(truth[mine].mean()), int(mine.sum()))
        for number in range(BINS)
        if (mine := place == number).any()
    ]
