"""The rows that a role trains on: windows of a corpus, drawn, renamed and tokenised anew each epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.language import Language
from flywheel.agents.contexts.prompts import Piece, Role, Window
from flywheel.config.root import Config
from flywheel.distill.batching.examples import Example, examples, windows_of
from flywheel.distill.data.corpus import VERIFIED, Corpus
from flywheel.distill.data.renaming import renamed, renumbered, shuffled
from flywheel.policies.card import limits_of
from flywheel.trajectory import digest

Weighs = Callable[[str, Piece], float]
"""(trajectory, words of the agent) → how much they count."""
Drawn = tuple[int, str, Example]
"""(epoch, trajectory, one of its rows in that epoch)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One role's trajectories, and what draws epochs from their windows. Nothing is read before it is asked for."""

    corpus: Corpus
    role: Role
    limits: Limits
    ids: tuple[str, ...]
    renamed: float
    seed: str

    @property
    def digest(self) -> str:
        """What decides every epoch's rows, down to their bytes."""
        drawn = [(trajectory_id, round(self.corpus.weights[trajectory_id], 6)) for trajectory_id in self.ids]
        texts = sorted(
            (trajectory_id, digest([piece.spelling for window in windows for piece in window.pieces], size=16))
            for trajectory_id, windows in self.windows()
        )
        return digest("rows", drawn, texts, self.corpus.exchangeable, self.corpus.constants, self.renamed, self.seed)

    def apart(self, share: float) -> tuple[Rows, Rows]:
        """(rows to learn from, rows of a share of the tasks that are held out); always the same tasks."""
        tasks = self.corpus.tasks
        held = {
            trajectory_id
            for trajectory_id in self.ids
            if int(digest("held out", tasks[trajectory_id], size=4), 16) / 2**32 < share
        }
        learned = tuple(trajectory_id for trajectory_id in self.ids if trajectory_id not in held)
        return replace(self, ids=learned), replace(self, ids=tuple(sorted(held)), renamed=0)

    def windows(self) -> Iterator[tuple[str, list[Window]]]:
        """(trajectory, its windows), in the order in which they lie in the lake."""
        for trajectory, segments in self.corpus.read(self.ids):
            yield trajectory.trajectory_id, windows_of(trajectory, segments, self.limits, self.role)

    def texts(self) -> Iterator[str]:
        """All that the role reads and says."""
        for _, windows in self.windows():
            for window in windows:
                yield from (piece.text for piece in window.pieces)

    def epochs(self, language: Language, count: int, weigh: Weighs = lambda trajectory, piece: 1.0) -> Iterator[Drawn]:
        """The rows of so many epochs, tokenised, in one pass over the lake. How often an episode comes follows its
        weight, and a share of them is renamed, as (seed, epoch, episode) decide."""
        for trajectory_id, windows in self.windows():
            for number in range(count):
                chance = random.Random(f"{self.seed}/{number}/{trajectory_id}")
                for _ in range(int(self.corpus.weights[trajectory_id] + chance.random())):
                    swapped = chance.random() < self.renamed
                    mapping = self._mapping(windows, chance) if swapped else {}
                    for pieces in renamed(windows, mapping):
                        for row in examples(pieces, language, partial(weigh, trajectory_id)):
                            yield number, trajectory_id, row

    def _mapping(self, windows: Sequence[Window], chance: random.Random) -> dict[str, str]:
        """Other names and numbers for an episode's."""
        names = shuffled(self.corpus.exchangeable, chance)
        return names | renumbered(windows, self.corpus.constants, chance)


def rows_of(config: Config, corpus: Corpus, role: Role, iteration: int, *, everything: bool = False) -> Rows:
    """Flat and planner learn from verified episodes; the executor also from completed segments of the others.

    `everything`: also what the role is not to learn from, for critics, who judge executors' episodes, too.
    """
    every = everything or role is Role.EXECUTOR
    ids = tuple(
        trajectory_id for trajectory_id in sorted(corpus.routes) if every or corpus.routes[trajectory_id] in VERIFIED
    )
    return Rows(corpus, role, limits_of(config.student), ids, config.train.renamed, f"{config.seed}/{iteration}")
