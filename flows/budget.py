"""Budgets of a turn: time by stage, tokens and money used, and whether work may continue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import BudgetError
from flywheel.flows.events import SPENT, tell
from flywheel.unknowns import spent

STAGES = ("check", "collect", "curate", "evaluate", "distill", "gate", "report")
LOOK_SECONDS = 2.0
"""The lake is asked for tokens and money at most this often."""


@dataclass
class BudgetTracker:
    """One run of a turn. `seconds`: wall-clock by stage, several visits added up."""

    config: Config
    lake: Lake
    iteration: int
    assure: Callable[[], None] = lambda: None
    """Raises `LakeBusyError` where the lake's turn was lost to another process."""
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _done: int = 0
    _spent: tuple[int | None, float | None] = (0, 0.0)
    _looked: float = 0.0

    @contextmanager
    def stage(self, name: str, happened: str = "") -> Iterator[dict[str, Any]]:
        """Time a stage; what the caller puts into the dict goes into the event at its end. Raises `BudgetError` before
        it begins if the budget is spent."""
        self._done = 0
        self.assure()
        self.check(name)
        fields: dict[str, Any] = {}
        began = time.monotonic()
        yield fields
        took = time.monotonic() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        if happened:
            tell(self.config.name, happened, iteration=self.iteration, seconds=round(took, 3), **fields)

    def over(self) -> bool:
        """Is the budget spent?"""
        return bool(self._why())

    def episodes(self, name: str, progress: Callable[[int], None]) -> Callable[[int], None]:
        """A progress callback that also stops the stage when the budget is spent."""

        def heard(count: int) -> None:
            self._done += count
            progress(count)
            self.check(name)

        return heard

    def updates(
        self, name: str, progress: Callable[[str, int, int, float], None]
    ) -> Callable[[str, int, int, float], None]:
        """The same for training."""

        def heard(role: str, update: int, total: int, loss: float) -> None:
            progress(role, update, total, loss)
            self.check(name)

        return heard

    def check(self, stage: str) -> None:
        """Raise `BudgetError`, saying what is left, if the budget is spent."""
        if not (why := self._why()):
            return
        left = ", ".join(STAGES[STAGES.index(stage) :])
        done = f" after {self._done} episodes" if self._done else ""
        message = f"{why}; {stage} of iteration {self.iteration} stopped{done}; left: {left}; the same command goes on"
        tell(self.config.name, SPENT, iteration=self.iteration, stage=stage, said=message)
        raise BudgetError(message)

    def _why(self) -> str:
        budget, now = self.config.budget, time.monotonic()
        if budget.seconds and now - self.began > budget.seconds:
            return f"the budget of {budget.seconds:g} s is spent"
        if not (budget.tokens or budget.cost):
            return ""
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            row = self.lake.sql(
                f"""select case when bool_and(tokens is not null) then sum(tokens)::bigint end as tokens,
                           case when bool_and(cost is not null) then sum(cost) end as cost, count(*) as played
                    from trajectories where ours and iteration = {self.iteration}"""
            ).to_pylist()[0]
            self._spent = (row["tokens"], row["cost"]) if row["played"] else (0, 0.0)
        tokens, cost = self._spent
        if spent(tokens, budget.tokens):
            amount = "some server does not say how many it used" if tokens is None else str(tokens)
            return f"the budget of {budget.tokens} tokens is spent ({amount}); raise budget.tokens"
        if spent(cost, budget.cost):
            amount = "what some episodes cost is unknown, see chat.price_prompt" if cost is None else f"{cost:g}"
            return f"the budget of {budget.cost:g} is spent ({amount}); raise budget.cost"
        return ""
