"""Is one policy no worse than another by more than a margin? An exact test on paired outcomes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import gammaln, xlogy

from flywheel.filters.batch import Floats

NUISANCES = 400
"""Values of the nuisance parameter among which the worst is sought."""


@lru_cache(256)
def noninferiority_p_value(wins: int, losses: int, tasks: int, margin: float) -> float:
    """P-value against "worse by `margin` or more", of so many tasks that only the one, or only the other, solved.

    Score statistic (Tango 1998, Statistics in Medicine 17, section 3) under the exact trinomial distribution, at the
    worst share of tasks that only the other solves (Hsueh, Liu & Chen 2001, Biometrics 57): it never promotes more
    often than its level. Raises `ValueError` for a margin outside (0, 1).
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}, and lies between 0 and 1")
    win_C, loss_C = outcomes(tasks)
    score_C = score(win_C, loss_C, tasks, margin)
    extreme_C = score_C >= score(np.array([wins]), np.array([losses]), tasks, margin)[0] - 1e-9
    win_C, loss_C = win_C[extreme_C], loss_C[extreme_C]
    ways_C = gammaln(tasks + 1) - gammaln(win_C + 1) - gammaln(loss_C + 1) - gammaln(tasks - win_C - loss_C + 1)
    worst = 0.0
    for loss_rate in np.linspace(margin, (1 + margin) / 2, NUISANCES):
        win_rate = loss_rate - margin
        tie_C = xlogy(tasks - win_C - loss_C, max(0.0, 1 - win_rate - loss_rate))
        log_C = ways_C + xlogy(win_C, win_rate) + xlogy(loss_C, loss_rate) + tie_C
        worst = max(worst, float(np.exp(log_C).sum()))
    return min(1.0, worst)


def outcomes(tasks: int) -> tuple[Floats, Floats]:
    """(wins (C,), losses (C,)) of every outcome of so many tasks."""
    wins, losses = np.meshgrid(np.arange(tasks + 1.0), np.arange(tasks + 1.0), indexing="ij")
    possible = wins + losses <= tasks
    return wins[possible], losses[possible]


def score(win_C: Floats, loss_C: Floats, tasks: int, margin: float) -> Floats:
    """Tango's Z for a difference of -margin, of so many wins and losses (C,)."""
    difference = -margin
    a = 2.0 * tasks
    b_C = -win_C - loss_C + (2 * tasks - win_C + loss_C) * difference
    c_C = -loss_C * difference * (1 - difference)
    loss_rate_C = (np.sqrt(np.maximum(b_C**2 - 4 * a * c_C, 0)) - b_C) / (2 * a)
    variance_C = tasks * np.maximum(2 * loss_rate_C + difference * (1 - difference), 1e-12)
    score_C: Floats = (win_C - loss_C - tasks * difference) / np.sqrt(variance_C)
    return score_C
