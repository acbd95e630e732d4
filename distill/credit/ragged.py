"""Ragged batches as flat arrays, and the one recurrence that credit is made of, without a loop over steps.

Shapes: N trajectories (or K segments) with T steps in all, one run after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flywheel.filters.batch import Bools, Floats, Ints


@dataclass(frozen=True)
class Runs:
    """Runs that lie one after another. starts_N1: where each begins, then T. No run is empty."""

    starts_N1: Ints

    @staticmethod
    def of(first_T: Bools) -> Runs:
        """Runs that begin where `first_T` holds; step 0 must be one of them."""
        return Runs(np.append(np.flatnonzero(first_T), len(first_T)))

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    @property
    def steps(self) -> int:
        return int(self.starts_N1[-1])

    @property
    def first_N(self) -> Ints:
        """Place of each run's first step."""
        return self.starts_N1[:-1]

    @property
    def last_N(self) -> Ints:
        """Place of each run's last step."""
        return self.starts_N1[1:] - 1

    @cached_property
    def length_N(self) -> Ints:
        return np.diff(self.starts_N1)

    @cached_property
    def owner_T(self) -> Ints:
        """Which run each step belongs to."""
        return np.repeat(np.arange(len(self)), self.length_N)

    def next_T(self, value_T: Floats, after_N: Floats) -> Floats:
        """The value of the step after; after a run's last step, `after_N`."""
        shifted = np.empty_like(value_T)
        shifted[:-1] = value_T[1:]
        shifted[self.last_N] = after_N
        return shifted

    def spread_T(self, value_N: Floats) -> Floats:
        """A number of each run at each of its steps."""
        return np.repeat(value_N, self.length_N)

    def within_T(self, factor_T: Floats) -> Floats:
        """The factor, 0 at each run's last step (in place): a recurrence under it does not leave its run."""
        factor_T[self.last_N] = 0.0
        return factor_T


BLOCK = 65_536
"""Steps that are worked on together, so that they stay in the processor's cache."""


def accumulate(base_T: Floats, factor_T: Floats) -> Floats:
    """x_t = base_t + factor_t · x_{t+1}, where factor_t is 0 at the end of every run.

    Neighbours are merged into one step of half as many, again and again, and then unfolded (a work-efficient scan:
    Blelloch 1990, section 1.4): some five operations a step in all, however long the runs. Nothing is divided, so
    nothing loses precision.
    """
    found_T = np.empty_like(base_T)
    ends = np.flatnonzero(factor_T == 0.0) + 1
    start = 0
    while start < len(base_T):
        stop = int(ends[min(int(np.searchsorted(ends, start + BLOCK)), len(ends) - 1)])
        found_T[start:stop] = _scan(base_T[start:stop], factor_T[start:stop])
        start = stop
    return found_T


def _scan(base_T: Floats, factor_T: Floats) -> Floats:
    if len(base_T) < 2:
        return base_T
    if len(base_T) % 2:
        base_T, factor_T = np.append(base_T, 0.0), np.append(factor_T, 0.0)
        return _scan(base_T, factor_T)[:-1]
    ahead_T, reach_T = base_T[1::2], factor_T[1::2]
    pair_T = factor_T[::2] * ahead_T
    pair_T += base_T[::2]
    found_T = np.empty_like(base_T)
    found_T[::2] = _scan(pair_T, factor_T[::2] * reach_T)
    found_T[1:-1:2] = reach_T[:-1] * found_T[2::2]
    found_T[-1] = 0.0
    found_T[1::2] += ahead_T
    return found_T
