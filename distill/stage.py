"""The distill stage: verified trajectories in the lake → a student's directory, named by what went into it.

A student is cloned from a corpus; `train.refine` lets it go on under another objective, as a student of its own whose
parent is the cloned one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flywheel.agents.prompts import PAD, Role
from flywheel.agents.tokens import PieceTokenizer, token_id
from flywheel.config import Config, Epochs
from flywheel.datasets.lake import Lake
from flywheel.distill.cards import part_card
from flywheel.distill.corpus import Corpus, load_corpus, refuse_revoked
from flywheel.distill.models import base_digest, first_part, next_part, save_part
from flywheel.distill.phases import Lesson, cloned, lessons
from flywheel.distill.registry import newest, policy_directory, register
from flywheel.distill.rows import rows_of, spoken_names
from flywheel.distill.students import (
    POLICY_FILE,
    ROLES,
    PolicyCard,
    acting_version,
    decoding_of,
    finish,
    limits_of,
    on_device,
    read_card,
)
from flywheel.distill.train import pick_device, train
from flywheel.filters.balance import effective_share
from flywheel.trajectory import digest

Progress = Callable[[str, int, int, float], None]
"""Hears (role, updates done, updates in all, loss)."""
AD_HOC = 0
"""The iteration of students that no turn asked for."""
UNSEEN = {"checkpoint_seconds", "device", "refine"}
"""Settings of training that another student does not come of."""


def distill(
    config: Config,
    lake: Lake,
    kind: str,
    iteration: int,
    progress: Progress = lambda role, update, total, loss: None,
    *,
    condition: str = "",
) -> PolicyCard:
    """Distill a student of a kind (`hierarchical` or `flat`) from all that was verified up to an iteration, or from
    exactly what a condition over `trajectories` selects.

    The policy id is a digest of corpus, settings and parent: distilling the same again finds it done. Later
    iterations start from the student of the iteration before, ad-hoc students from scratch.
    """
    corpus = load_corpus(config, lake, iteration, condition)
    number = AD_HOC if condition else iteration
    parent = newest(lake, kind, number - 1) if number > 1 else ""
    later = config.train.later_epochs if parent else config.train.epochs
    student = _student(config, lake, corpus, kind, number, parent, [], later, cloned, progress)
    if not config.train.refine:
        return student
    refine = config.train.refine
    teacher = ""
    if refine.objective == "imitation":
        wide = config.model_copy(update={"student": refine.teacher, "seed": refine.teacher_seed})
        epochs = refine.teacher_epochs or config.train.epochs
        teacher = _student(wide, lake, corpus, kind, AD_HOC, "", [], epochs, cloned, progress).policy_id
    phase = config.model_copy(
        update={"train": config.train.model_copy(update={"learning_rate": refine.learning_rate, "warmup": 0.1})}
    )
    lesson = lessons(phase, refine, lake, corpus, ROLES[kind], student, teacher, iteration)
    extra = [refine.model_dump(mode="json"), teacher]
    return _student(phase, lake, corpus, kind, number, student.policy_id, extra, refine.epochs, lesson, progress)


def _student(
    config: Config,
    lake: Lake,
    corpus: Corpus,
    kind: str,
    iteration: int,
    parent: str,
    extra: Sequence[object],
    epochs: Epochs,
    lesson: Callable[[Role], Lesson],
    progress: Progress,
) -> PolicyCard:
    """Train every role of a student, unless that was done."""
    limits, decoding = limits_of(config.student), decoding_of(config.student, config.seed)
    settings = [
        config.student.model_dump(),
        config.train.model_dump(exclude=UNSEEN),
        epochs.model_dump(),
        config.seed,
        base_digest(config.student),
        *extra,
    ]
    policy_id = f"{kind}-{digest(kind, iteration, corpus.digest, corpus.condition, settings, parent)}"
    directory = policy_directory(lake, policy_id)
    if not (directory / POLICY_FILE).is_file():
        start = policy_directory(lake, parent) if parent else None
        metrics = {"effective_share": effective_share(np.array(list(corpus.weights.values())))}
        parameters = 0
        for role in ROLES[kind]:
            said, size = _role(
                config, corpus, role, iteration, epochs.model_dump()[role], lesson(role), directory, start, progress
            )
            metrics |= {f"{role}_{name}": value for name, value in said.items()}
            parameters += size
        card = PolicyCard(
            kind=kind,
            policy_id=policy_id,
            version=acting_version(limits, decoding),
            limits=limits,
            decoding=decoding,
            iteration=iteration,
            snapshot=corpus.snapshot,
            condition=corpus.condition,
            trajectories=len(corpus.trajectories),
            training_digest=corpus.digest,
            config_digest=config.identity(),
            parent_policy_id=parent,
            parameters=parameters,
            metrics=metrics,
        )
        refuse_revoked(lake, corpus)
        verifiers = [one.name for one in config.curate.verifiers if one.gate]
        for role in ROLES[kind]:
            (directory / role / "README.md").write_text(part_card(card, role, verifiers))
        finish(directory, card)
    card = read_card(directory)
    register(lake, card, list(corpus.routes))
    return card


def _role(
    config: Config,
    corpus: Corpus,
    role: Role,
    iteration: int,
    epochs: int,
    lesson: Lesson,
    directory: Path,
    start: Path | None,
    progress: Progress,
) -> tuple[dict[str, float], int]:
    """Train and save one role's model; (training metrics, parameters)."""
    rows, held = rows_of(config, corpus, role, iteration).apart(config.train.held_out)
    if start:
        model, tokenizer = next_part(config.student, start / role, directory / role)
    else:
        names = spoken_names(corpus)
        model, tokenizer = first_part(config.student, rows.texts(), names, config.seed, directory / role)
    model = on_device(model, pick_device(config.train.device))
    tokens, pad = PieceTokenizer(tokenizer), token_id(tokenizer, PAD)
    metrics = train(
        model,
        [lesson.rows(rows, tokens, number) for number in range(epochs)],
        config.train,
        seed=config.seed + iteration,
        pad=pad,
        checkpoint=directory / f"{role}.checkpoint",
        objective=lesson.objective,
        held_out=held.epoch(tokens, 0),
        progress=lambda update, total, loss: progress(role, update, total, loss),
    )
    save_part(on_device(model, "cpu"), tokenizer, directory / role)
    if lesson.head:
        lesson.head.save(directory / role)
        metrics["explained_variance"] = lesson.head.explained
    return metrics, model.num_parameters()
