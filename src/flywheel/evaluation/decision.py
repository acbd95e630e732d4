"""What a gate found, as it is recorded and told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flywheel.evaluation.statistics import Interval


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the tasks. `both`: solved by both; `p_value`: one-sided, that the challenger is no worse there."""

    name: str
    tasks: int
    both: int
    wins: int
    losses: int
    p_value: float

    def solved(self, *, by_challenger: bool) -> int:
        """Tasks that the challenger, or the champion, solved."""
        return self.both + (self.wins if by_challenger else self.losses)


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What a gate found. `wins`: tasks that only the challenger solved; `losses`: only the champion.

    `alpha` is what this look may spend of the gate's level; `score` the mean gain in score. A significant regression
    in any slice forbids promotion.
    """

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
    score: Interval
    slices: tuple[Slice, ...] = ()
    worse: tuple[str, ...] = ()
    look: int = 1
    looks: int = 1
    challengers: int = 1
    """How many of them share the gate's level."""
    better: str = ""
    """The challenger that was promoted instead, where this one won its test, too."""
    margin: float = 0.0
    noninferior_p: float = 1.0
    """One-sided: that the challenger is worse by the margin or more; only where there is a margin."""

    @property
    def gain(self) -> float:
        """The difference in success."""
        return (self.wins - self.losses) / self.tasks

    @property
    def sentence(self) -> str:
        """The decision as a sentence."""
        verb = "promoted" if self.promoted else f"passed over for {self.better}" if self.better else "refused"
        where = f"; worse on {', '.join(self.worse)}" if self.worse else ""
        look = f", look {self.look} of {self.looks}" if self.looks > 1 else ""
        look += f", one of {self.challengers} challengers" if self.challengers > 1 else ""
        no_worse = (
            f"; no worse by {self.margin:.0%}: exact p = {self.noninferior_p:.2g} (level {self.alpha / 2:.2g})"
            if self.margin
            else ""
        )
        return (
            f"{verb}: {self.challenger_rate:.1%} against {self.champion_rate:.1%} on {self.tasks} tasks, "
            f"{self.wins} won and {self.losses} lost, exact McNemar p = {self.p_value:.2g} "
            f"(level {self.alpha:.2g}{look}){no_worse}; "
            f"a difference of {self.minimum_detectable_effect:.0%} would have been found{where}"
        )

    @property
    def hopeless(self) -> bool:
        """Is the challenger significantly worse, so that further looks are futile?"""
        return self.losses > self.wins and self.p_value <= self.alpha

    @staticmethod
    def from_json(raw: dict[str, Any]) -> GateDecision:
        slices = tuple(Slice(**fields) for fields in raw["slices"])
        return GateDecision(
            **{**raw, "score": Interval(**raw["score"]), "slices": slices, "worse": tuple(raw["worse"])}
        )
