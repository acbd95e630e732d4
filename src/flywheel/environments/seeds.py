"""Seeds that carry their split, for environments that draw a task from any seed."""

from __future__ import annotations

from flywheel.errors import TaskError
from flywheel.trajectory import Split

FIRST = {Split.TRAIN: 0, Split.DEV: 1_000_000_000, Split.TEST: 1_500_000_000}
"""Where the seeds of a split begin: none lies in two."""
END = 2**31


def seeds_of(split: Split, start: int, count: int) -> range:
    """The seeds of tasks [start, start + count) of a split."""
    return range(FIRST[split] + start, FIRST[split] + start + count)


def check_seed(split: Split, seed: int) -> None:
    """Raises `TaskError` for a seed that is not the split's."""
    later = [first for first in FIRST.values() if first > FIRST[split]]
    if not FIRST[split] <= seed < min(later, default=END):
        raise TaskError(f"seed {seed} is none of the {split} split")
