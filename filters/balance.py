"""Balance: how often an episode should teach, so that training does not collapse to short, easy, familiar runs.

Pure functions over N episodes; `distill.stage` brings the columns and draws by the weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from flywheel.config.curate import BalanceConfig
from flywheel.filters.batch import Floats, Ints


def horizon_buckets(lengths: Ints) -> Ints:
    """Octave of an episode's length: 1, 2–3, 4–7, 8–15, … steps are 0, 1, 2, 3, …"""
    return np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)


def shares(groups: Sequence[Hashable]) -> Floats:
    """(N,): share of all episodes that lie in the same group."""
    places = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    codes = np.array([places[group] for group in groups], np.int64)
    return np.asarray(np.bincount(codes)[codes] / max(len(codes), 1), np.float64)


def weights(
    settings: BalanceConfig, *, lengths: Ints, families: Sequence[str], success: Floats, neighbours: Ints
) -> Floats:
    """(N,): expected number of times that each episode is drawn in an epoch.

    `success`: the champion's rate on episodes of the same family and horizon, in [0, 1]. `neighbours`: how many other
    episodes are much like it. An exponent of 0 leaves an aspect out, 1 levels it completely. Weights are cut at
    `max_weight` times their mean; a common factor then makes the steps drawn as many as there are.
    """
    weight = (
        shares(horizon_buckets(lengths).tolist()) ** -settings.horizon
        * shares(families) ** -settings.family
        * (1.05 - success) ** settings.difficulty
        * (1.0 + neighbours) ** -settings.novelty
    )
    weight = np.minimum(weight / weight.mean(), settings.max_weight)
    return np.asarray(weight * lengths.sum() / max(float((weight * lengths).sum()), 1e-12), np.float64)


def effective_share(weight: Floats) -> float:
    """Effective sample size as a share of N (Kish 1965): 1 for equal weights."""
    return float(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))
