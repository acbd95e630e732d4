"""What a role's training reads, made once: a row store an epoch, and the model before its first update.

The first of several processes makes it and the others wait. What is finished is found by a run that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flywheel.agents.contexts.language import Language, language_of
from flywheel.agents.contexts.prompts import Role
from flywheel.config.root import Config
from flywheel.distill.algorithms.protocol import RoleTraining
from flywheel.distill.batching.row_store import RowStore, RowWriter, with_columns, write_rows
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.data.rows import Rows, rows_of
from flywheel.policies.models import Part, first_part, load_part, load_tokenizer, new_model, next_part, save_part
from flywheel.runtime.distributed import barrier, is_main

START = "start"
DONE = "rows.done"


@dataclass(frozen=True, slots=True)
class Prepared:
    """`start`: the folder of the model before training; `whole`: loads it."""

    epochs: list[RowStore]
    validation: RowStore
    start: Path

    def whole(self) -> Part:
        return load_part(self.start, trainable=True)


def prepare(
    config: Config,
    corpus: Corpus,
    role: Role,
    iteration: int,
    epochs: int,
    role_training: Callable[[], RoleTraining],
    directory: Path,
    start: Path | None,
    tokenizers: Path | None,
) -> Prepared:
    """Make the rows and the model of a role, unless that was done. `directory` is the policy's; `start` is its
    parent's, `tokenizers` that of a student whose tokenizers it takes over."""
    work = directory / f"{role}.checkpoint"
    model_folder = directory / f"{role}.{START}"
    if is_main() and not (work / DONE).is_file():
        rows, held = rows_of(config, corpus, role, iteration).apart(config.train.validation_share)
        model, tokenizer = _start(config, corpus, rows, role, directory, start, tokenizers)
        save_part(model, tokenizer, model_folder)
        language = language_of(tokenizer)
        write_rows(work / "validation.arrow", ((owner, row) for _, owner, row in held.epochs(language, 1)))
        _write_epochs(role_training(), rows, language, epochs, work)
        (work / DONE).touch()
    barrier()
    stores = [RowStore(work / f"epoch-{number}.arrow") for number in range(epochs)]
    return Prepared(stores, RowStore(work / "validation.arrow"), model_folder)


def _start(
    config: Config,
    corpus: Corpus,
    rows: Rows,
    role: Role,
    directory: Path,
    start: Path | None,
    tokenizers: Path | None,
) -> Part:
    if start:
        return next_part(config.student, start / role, directory / role)
    if tokenizers:
        tokenizer = load_tokenizer(tokenizers / role)
        return new_model(config.student, tokenizer, config.seed), tokenizer
    texts, numbers = rows.texts(), corpus.calls_tools
    return first_part(config.student, texts, corpus.spoken, config.seed, directory / role, numbers=numbers)


def _write_epochs(training: RoleTraining, rows: Rows, language: Language, epochs: int, work: Path) -> None:
    with ExitStack() as stack:
        names = [work / f"{'plain' if training.columns else 'epoch'}-{number}.arrow" for number in range(epochs)]
        writers = [stack.enter_context(RowWriter(name)) for name in names]
        for number, owner, row in training.rows(rows, language, epochs):
            writers[number].add(owner, row)
    if not training.columns:
        return
    add = training.columns(rows)
    for number, name in enumerate(names):
        with_columns(RowStore(name), work / f"epoch-{number}.arrow", partial(add, number))
        name.unlink()
