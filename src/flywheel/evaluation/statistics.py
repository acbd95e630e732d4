"""Statistics of comparisons as pure functions, with intervals clustered by task."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from flywheel.filters.batch import Floats, Ints

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def rate(successes: int, tasks: int) -> Interval:
    """A rate with Wilson's interval (Wilson 1927)."""
    share, square = successes / tasks, NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    centre = share + square / (2 * tasks)
    reach = math.sqrt(square * (share * (1 - share) / tasks + square / (4 * tasks**2)))
    low, high = ((centre + sign * reach) / (1 + square / tasks) for sign in (-1, 1))
    return Interval(share, max(low, 0.0) if successes else 0.0, min(high, 1.0) if successes < tasks else 1.0)


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable], seed: int = 0) -> Interval:
    """Mean of paired differences (K,) with a percentile bootstrap that draws whole clusters: tasks of one group share
    their luck (Cameron, Gelbach & Miller 2008, section III)."""
    value_K = np.asarray(values, np.float64)
    code_K = _codes(clusters)
    sum_C, count_C = np.bincount(code_K, value_K), np.bincount(code_K)
    chance = np.random.default_rng(seed)
    drawn_RC = chance.multinomial(len(sum_C), np.full(len(sum_C), 1 / len(sum_C)), DRAWS)
    mean_R = (drawn_RC @ sum_C) / np.maximum(drawn_RC @ count_C, 1)
    return _interval(float(value_K.mean()), mean_R)


def crossed_mean(values_SK: ArrayLike, seed: int = 0) -> Interval:
    """Mean of paired differences by training seed and task (S, K), both drawn anew: seeds are few, so the interval is
    rough, and honest about it (two-way bootstrap: Owen 2007, section 3)."""
    value_SK = np.asarray(values_SK, np.float64)
    seeds, tasks = value_SK.shape
    chance = np.random.default_rng(seed)
    by_seed_RS = chance.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    by_task_RK = chance.multinomial(tasks, np.full(tasks, 1 / tasks), DRAWS) / tasks
    return _interval(float(value_SK.mean()), np.einsum("rs,sk,rk->r", by_seed_RS, value_SK, by_task_RK, optimize=True))


def _interval(value: float, drawn_R: Floats) -> Interval:
    low, high = np.quantile(drawn_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _codes(groups: Sequence[Hashable]) -> Ints:
    places = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([places[group] for group in groups], np.int64)
