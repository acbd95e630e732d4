"""What an algorithm is: it finetunes a cloned student, by saying what each role learns from and under which loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flywheel.agents.contexts.language import Language
from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import PhaseConfig
from flywheel.config.root import Config
from flywheel.config.student import Epochs
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import Example
from flywheel.distill.credit.critics import ValueHead
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.data.rows import Drawn, Rows
from flywheel.distill.training.loop import Loss, Metrics
from flywheel.policies.card import PolicyCard
from flywheel.policies.registry import policy_directory

AddColumns = Callable[[int, range, Sequence[str], Sequence[Example]], Iterable[Example]]
"""(epoch, places in it, trajectories, rows) → the same rows with more columns."""
AD_HOC = 0
"""The iteration of students that no turn asked for."""
WARMUP = 0.1
"""Share of a phase's updates with a rising learning rate."""


@dataclass(frozen=True, slots=True)
class RoleTraining:
    """What one role learns from, and how.

    `rows`: (rows, tokenizer, epochs) → what is learned from, in any order. `columns`: rows → what adds to them what a
    model has to be asked for. `metrics`: sums over targets that become curves. `critic`: kept with the model.
    """

    loss: Loss
    rows: Callable[[Rows, Language, int], Iterator[Drawn]] = Rows.epochs
    columns: Callable[[Rows], AddColumns] | None = None
    metrics: Metrics = lambda logits, targets: {}
    critic: ValueHead | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """How a student is trained. `roles` is called only if the student does not exist yet, once for all its roles.

    `identity`: what else its name depends on. `also`: trajectories that teach it beside the corpus. `tokenizers`: the
    directory of a student whose tokenizers it takes over.
    """

    roles: Callable[[], Callable[[Role], RoleTraining]]
    identity: tuple[object, ...] = ()
    also: Sequence[str] = ()
    tokenizers: Path | None = None


class Train(Protocol):
    """Train every role of a student, unless that was done; the stage's own."""

    def __call__(
        self, config: Config, corpus: Corpus, iteration: int, parent: str, epochs: Epochs, training: Training
    ) -> PolicyCard: ...


@dataclass(frozen=True, slots=True)
class Finetuning:
    """A cloned student that an algorithm goes on from, the corpus it was cloned from, and what trains another."""

    config: Config
    lake: Lake
    corpus: Corpus
    kind: str
    iteration: int
    student: PolicyCard
    train: Train = field(repr=False)

    @property
    def directory(self) -> Path:
        """The cloned student's."""
        return policy_directory(self.lake, self.student.policy_id)

    def phase(self, settings: PhaseConfig, **overrides: object) -> Config:
        """The config with settings of training as a phase needs them."""
        train = {"learning_rate": settings.learning_rate, "warmup": WARMUP, **overrides}
        return self.config.model_copy(update={"train": self.config.train.model_copy(update=train)})

    def trained(
        self,
        phase: Config,
        settings: PhaseConfig,
        roles: Callable[[], Callable[[Role], RoleTraining]],
        *,
        identity: Sequence[object] = (),
        also: Sequence[str] = (),
    ) -> PolicyCard:
        """The student that comes of one phase on the corpus; see `Training`."""
        training = Training(roles, (settings.model_dump(mode="json"), *identity), also)
        return self.train(phase, self.corpus, self.iteration, self.student.policy_id, settings.epochs, training)


class Algorithm(Protocol):
    """Made of its settings, `ALGORITHMS[settings.algorithm](settings)`."""

    def finetune(self, start: Finetuning) -> PolicyCard:
        """The student that comes of it; asked again, it is found."""
