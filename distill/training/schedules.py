"""Learning rates over a run, as a factor of the configured one. Pure functions of update and total."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

LEAST = 0.02
"""Factor at the end of a run."""
DECAY = 0.2
"""Share of a run with a falling rate under warm-up, stable, decay."""
Schedule = Callable[[int, int], float]


def linear(update: int, total: int) -> float:
    """A linear fall."""
    return max(LEAST, 1 - update / total)


def cosine(update: int, total: int) -> float:
    """Half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * update / total)) / 2


def stable(update: int, total: int) -> float:
    """Constant, then a linear fall over the last fifth (WSD: MiniCPM, arXiv 2404.06395, section 4)."""
    left = (total - update) / max(1.0, DECAY * total)
    return max(LEAST, min(1.0, left))


SCHEDULES: Mapping[str, Schedule] = {"linear": linear, "cosine": cosine, "wsd": stable}


def factor(schedule: str, update: int, total: int, warmup: float) -> float:
    """The schedule's factor under a linear rise over the warm-up, a share of the run."""
    rising = max(1.0, warmup * total)
    return min((update + 1) / rising, SCHEDULES[schedule](update, total))
