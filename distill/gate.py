"""The gate: challenger and champion on the same held-out tasks, judged by an exact paired test.

Pure functions; `distill.evaluation` brings the outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest


@dataclass(frozen=True, slots=True)
class Decision:
    """What a gate found. `wins`: tasks that only the challenger solved; `losses`: only the champion."""

    tasks: int
    both: int
    wins: int
    losses: int
    neither: int
    challenger_rate: float
    champion_rate: float
    p_value: float
    alpha: float
    minimum_detectable_effect: float
    promoted: bool

    @property
    def sentence(self) -> str:
        """The decision as one would say it."""
        verb = "promoted" if self.promoted else "refused"
        return (
            f"{verb}: {self.challenger_rate:.1%} against {self.champion_rate:.1%} on {self.tasks} tasks, "
            f"{self.wins} won and {self.losses} lost, exact McNemar p = {self.p_value:.2g} (level {self.alpha:g}); "
            f"a difference of {self.minimum_detectable_effect:.0%} would have been found"
        )


def decide(challenger: Sequence[bool], champion: Sequence[bool], *, alpha: float, power: float) -> Decision:
    """Exact two-sided McNemar test on paired outcomes (McNemar 1947); promotes only a significant gain."""
    ours, theirs = np.asarray(challenger, bool), np.asarray(champion, bool)
    if ours.shape != theirs.shape or not ours.size:
        raise ValueError("a paired test needs the same tasks, at least one, for both policies")
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    p_value = float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    return Decision(
        tasks=ours.size,
        both=int((ours & theirs).sum()),
        wins=wins,
        losses=losses,
        neither=int((~ours & ~theirs).sum()),
        challenger_rate=float(ours.mean()),
        champion_rate=float(theirs.mean()),
        p_value=p_value,
        alpha=alpha,
        minimum_detectable_effect=minimum_detectable_effect(ours.size, (wins + losses) / ours.size, alpha, power),
        promoted=wins > losses and p_value <= alpha,
    )


def minimum_detectable_effect(tasks: int, discordant: float, alpha: float, power: float) -> float:
    """Smallest gain in success that the exact test would find with the given power.

    `discordant` is the share of tasks on which the two policies differ; at least the gain itself, since a gain is
    made of such tasks. Searched on a grid of 1/tasks; 1.0 if even winning everything would not do.
    """
    for gain in np.arange(1, tasks + 1) / tasks:
        if _power(tasks, max(discordant, gain), gain, alpha) >= power:
            return float(gain)
    return 1.0


def _power(tasks: int, discordant: float, gain: float, alpha: float) -> float:
    """Chance that the exact two-sided test promotes, over the number of discordant tasks and of wins among them."""
    win_chance = min(1.0, 0.5 + gain / (2 * discordant))
    pairs = np.arange(tasks + 1)
    critical = _critical_wins(tasks, alpha)
    return float((binom.pmf(pairs, tasks, min(discordant, 1.0)) * binom.sf(critical - 1, pairs, win_chance)).sum())


def _critical_wins(tasks: int, alpha: float) -> NDArray[np.int64]:
    """For each number of discordant pairs, the fewest wins that the two-sided test at `alpha` accepts."""
    pairs = np.arange(tasks + 1)
    wins: NDArray[np.int64] = (binom.isf(alpha / 2, pairs, 0.5) + 1).astype(np.int64)
    return wins
