"""The gate: challenger and champion on the same held-out tasks, judged by an exact paired test.

Pure functions; `distill.evaluation` brings the outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from flywheel.evaluation.decision import GateDecision, Slice
from flywheel.evaluation.noninferiority import noninferiority_p_value
from flywheel.evaluation.statistics import clustered_mean
from flywheel.filters.batch import Bools

GUESS = 0.3
"""Share of tasks on which two policies differ, before anyone has looked."""


def decide(
    challenger: Sequence[bool],
    champion: Sequence[bool],
    *,
    alpha: float,
    power: float,
    gains: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
    slices: Mapping[str, Bools] | None = None,
    margin: float = 0.0,
) -> GateDecision:
    """Exact two-sided McNemar test on paired outcomes (McNemar 1947); promotes a significant gain.

    With a `margin`, it also promotes what is no worse by that much (`noninferiority`), at half of `alpha` on its one
    side; who is better is no worse, so that the two tests need no correction (Morikawa & Yoshida 1995).
    `gains`: differences in score, whose mean gets a bootstrap over task `groups`. `slices`: name → which tasks. In each
    a one-sided test at `alpha` looks for a regression; it is not corrected for their number, since what a veto costs
    is patience and what it prevents is harm.
    """
    ours, theirs = np.asarray(challenger, bool), np.asarray(champion, bool)
    if ours.shape != theirs.shape or not ours.size:
        raise ValueError("a paired test needs the same tasks, at least one, for both policies")
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    p_value = float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    parts = tuple(_slice(name, ours[mask], theirs[mask]) for name, mask in (slices or {}).items())
    worse = tuple(part.name for part in parts if part.losses > part.wins and part.p_value <= alpha)
    noninferior_p = noninferiority_p_value(wins, losses, ours.size, margin) if margin else 1.0
    passed = (wins > losses and p_value <= alpha) or noninferior_p <= alpha / 2
    return GateDecision(
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
        promoted=passed and not worse,
        score=clustered_mean(
            ours.astype(float) - theirs if gains is None else gains, range(ours.size) if groups is None else groups
        ),
        slices=parts,
        worse=worse,
        margin=margin,
        noninferior_p=noninferior_p,
    )


def at_look(decision: GateDecision, look: int, looks: int) -> GateDecision:
    """The decision as one of several looks at growing data."""
    return replace(decision, look=look, looks=looks)


def look_sizes(tasks: int, looks: int) -> list[int]:
    """How many tasks each look sees. Each may spend an equal share of the level, so that all together keep to it
    (alpha spending with Bonferroni's bound: Lan & DeMets 1983, exact tests stay exact)."""
    return sorted({max(1, round(tasks * (number + 1) / looks)) for number in range(looks)})


def foresight(tasks: int, alpha: float, power: float, looks: int = 1, challengers: int = 1) -> str:
    """What a gate can find, before it runs."""
    effect = minimum_detectable_effect(tasks, GUESS, alpha / looks / challengers, power)
    shared = f" for {challengers} challengers" if challengers > 1 else ""
    return (
        f"{tasks} tasks, level {alpha:g} in {looks} look{'s' if looks > 1 else ''}{shared}: where the policies differ "
        f"on {GUESS:.0%} of the tasks, a gain of {effect:.0%} is found with {power:.0%} power"
    )


def _slice(name: str, ours: Bools, theirs: Bools) -> Slice:
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    p_value = float(binomtest(wins, wins + losses, 0.5, alternative="less").pvalue) if wins + losses else 1.0
    return Slice(name, int(ours.size), int((ours & theirs).sum()), wins, losses, p_value)


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
