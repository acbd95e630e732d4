"""The rows that a role trains on: windows of a corpus, drawn, renamed and tokenised anew each epoch."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from flywheel.agents.prompts import Piece, Role, Window
from flywheel.agents.tokens import PieceTokenizer
from flywheel.config import Config
from flywheel.distill.corpus import VERIFIED, Corpus
from flywheel.distill.examples import Example, example, windows_of
from flywheel.distill.renaming import exchangeable_names, renamed, shuffled
from flywheel.distill.students import limits_of
from flywheel.distill.tokenizer import named_things
from flywheel.trajectory import digest

Weighs = Callable[[str, Piece], float]
"""(trajectory, words of the agent) → how much they count."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One role's windows by trajectory, and what draws epochs from them."""

    corpus: Corpus
    windows: dict[str, list[Window]]
    names: list[str]
    renamed: float
    seed: str

    @property
    def digest(self) -> str:
        """What decides every epoch's rows, down to their bytes."""
        drawn = [(one, round(self.corpus.weights[one], 6)) for one in self.windows]
        texts = [[piece.text for window in own for piece in window.pieces] for own in self.windows.values()]
        return digest("rows", drawn, texts, self.names, self.renamed, self.seed)

    def apart(self, share: float) -> tuple[Rows, Rows]:
        """(rows to learn from, rows of a share of the tasks that are held out); always the same tasks."""
        if not share:
            return self, replace(self, windows={})
        tasks = {one.trajectory_id: one.task_id for one in self.corpus.trajectories}
        held = {one for one in self.windows if int(digest("held out", tasks[one], size=4), 16) / 2**32 < share}
        learned, kept = (
            {one: own for one, own in self.windows.items() if (one in held) == is_held} for is_held in (False, True)
        )
        return replace(self, windows=learned), replace(self, windows=kept, renamed=0)

    def texts(self) -> list[str]:
        """All that the role reads and says."""
        return [piece.text for own in self.windows.values() for window in own for piece in window.pieces]

    def drawn(self, number: int) -> list[tuple[str, list[Piece]]]:
        """(trajectory, pieces) of the rows of one epoch. How often an episode comes follows its weight, and a share of
        them is renamed, as (seed, epoch, episode) decide."""
        rows: list[tuple[str, list[Piece]]] = []
        for one, own in self.windows.items():
            chance = random.Random(f"{self.seed}/{number}/{one}")
            for _ in range(int(self.corpus.weights[one] + chance.random())):
                mapping = shuffled(self.names, chance) if chance.random() < self.renamed else {}
                rows += [(one, pieces) for pieces in renamed(own, mapping)]
        return rows

    def epoch(
        self, tokens: PieceTokenizer, number: int, weigh: Weighs = lambda trajectory, piece: 1.0
    ) -> list[Example]:
        """The rows of one epoch, tokenised."""
        return [example(pieces, tokens, partial(weigh, one)) for one, pieces in self.drawn(number)]


def rows_of(config: Config, corpus: Corpus, role: Role, iteration: int, *, everything: bool = False) -> Rows:
    """Flat and planner learn from verified episodes; the executor also from completed segments of the others.

    `everything`: also what the role is not to learn from, for critics, who judge executors' episodes, too.
    """
    limits = limits_of(config.student)
    windows = {
        one.trajectory_id: windows_of(one, corpus.segments[one.trajectory_id], limits, role)
        for one in corpus.trajectories
        if everything or role is Role.EXECUTOR or corpus.routes[one.trajectory_id] in VERIFIED
    }
    names = exchangeable_names(corpus.trajectories)
    return Rows(corpus, windows, names, config.train.renamed, f"{config.seed}/{iteration}")


def spoken_names(corpus: Corpus) -> list[str]:
    """What the agents' own actions name."""
    return named_things({step.action for one in corpus.trajectories for step in one.steps if step.trainable})
