"""The distill stage: verified trajectories in the lake → a student's directory, named by what went into it.

A student is cloned from a corpus; `train.finetune` lets an algorithm go on from it, to a student of its own whose
parent is the cloned one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from flywheel.agents.contexts.language import padding
from flywheel.agents.contexts.prompts import WORDING, Role
from flywheel.config.root import Config
from flywheel.config.student import Epochs
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.algorithms.bc import cloned
from flywheel.distill.algorithms.catalog import make_algorithm
from flywheel.distill.algorithms.prepare_rows import prepare
from flywheel.distill.algorithms.protocol import AD_HOC, Finetuning, RoleTraining, Training
from flywheel.distill.data.corpus import Corpus, load_corpus, refuse_revoked
from flywheel.distill.subgoals.segmentation import cut_missing
from flywheel.distill.training.checkpoints import take_over, whole_weights
from flywheel.distill.training.loop import train
from flywheel.distill.training.tracking import tracked
from flywheel.errors import PolicyError, TrainingError
from flywheel.filters.balance import effective_share
from flywheel.policies.card import (
    POLICY_FILE,
    ROLES,
    TRACKING,
    PolicyCard,
    acting_version,
    decoding_of,
    finish,
    limits_of,
    read_card,
)
from flywheel.policies.model_card import part_card
from flywheel.policies.models import base_digest, load_tokenizer, save_part
from flywheel.policies.registry import newest, policy_directory, register
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device
from flywheel.runtime.distributed import barrier, broadcast, is_main, process_group
from flywheel.trajectory import digest

Progress = Callable[[str, int, int, float], None]
"""Hears (role, updates done, updates in all, loss)."""
UNSEEN = {"checkpoint_seconds", "device", "finetune", "parallelism", "processes", "side_by_side", "trackers"}
"""Settings of training that another student does not come of."""


def distill(
    config: Config,
    lake: Lake,
    kind: str,
    iteration: int,
    progress: Progress = lambda role, update, total, loss: None,
    *,
    condition: str = "",
    dataset: str = "",
) -> PolicyCard:
    """Distill a student of a kind (`hierarchical` or `flat`) from all that was verified up to an iteration, or from
    exactly what a condition over `trajectories` selects, or a dataset (name@v3) holds.

    The policy id is a digest of corpus, settings and parent: distilling the same again finds it done. Later
    iterations start from the student of the iteration before, ad-hoc students from scratch. Processes that torchrun
    started share the work; lake and students lie where all of them see them.
    """
    with process_group(pick_device(config.train.device)):
        return _distilled(config, lake, kind, iteration, progress, condition, dataset)


def _distilled(
    config: Config, lake: Lake, kind: str, iteration: int, progress: Progress, condition: str, dataset: str
) -> PolicyCard:
    finetune = config.train.finetune
    algorithm = make_algorithm(finetune, kind) if finetune else None
    if is_main():
        cut_missing(lake, config.train.segments)
    corpus = load_corpus(config, lake, iteration, condition, dataset, hierarchical=kind == "hierarchical")
    number = AD_HOC if corpus.condition else iteration
    parent = newest(lake, kind, number - 1) if number > 1 else ""
    epochs = config.train.later_epochs if parent else config.train.epochs
    train_student = partial(_student, lake, kind, progress)
    cloned_student = train_student(config, corpus, number, parent, epochs, Training(lambda: cloned))
    if not algorithm:
        return cloned_student
    return algorithm.finetune(Finetuning(config, lake, corpus, kind, number, cloned_student, train_student))


def _student(
    lake: Lake,
    kind: str,
    progress: Progress,
    config: Config,
    corpus: Corpus,
    iteration: int,
    parent: str,
    epochs: Epochs,
    training: Training,
) -> PolicyCard:
    """Train every role of a student, unless that was done."""
    limits, decoding = limits_of(config.student), decoding_of(config.student, config.seed)
    contents = base_digest(config.student)
    settings = [
        WORDING,
        config.student.model_dump(),
        config.train.model_dump(exclude=UNSEEN),
        epochs.model_dump(),
        config.seed,
        contents,
        *training.identity,
        *_vocabularies(training.tokenizers, kind),
    ]
    name = digest(kind, iteration, corpus.digest, corpus.condition, settings, parent)
    policy_id = f"{kind}-{name}"
    if broadcast(int(name, 16) >> 1) != int(name, 16) >> 1:
        raise TrainingError("the processes see different lakes or settings; give them one lake, and run again")
    directory = policy_directory(lake, policy_id)
    base = f"{contents} rank {config.student.lora_rank}" if config.student.base else ""
    if not (directory / POLICY_FILE).is_file():
        start = policy_directory(lake, parent) if parent else None
        if start and read_card(start).base != base:
            raise PolicyError(f"{parent} was made from another base; train from scratch (--where), or go back to it")
        metrics = {"effective_share": effective_share(np.array(list(corpus.weights.values())))}
        parameters = 0
        roles = cache(training.roles)
        for role in ROLES[kind]:
            passes = epochs.model_dump()[role]
            role_training = cache(partial(_role_training, roles, role))
            measured, size = _role(
                config,
                corpus,
                role,
                iteration,
                passes,
                role_training,
                lake,
                directory,
                start,
                training.tokenizers,
                progress,
            )
            metrics |= {f"{role}_{name}": value for name, value in measured.items()}
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
            trajectories=len(corpus.routes) + len(training.also),
            training_digest=corpus.digest,
            config_digest=config.identity(),
            parent_policy_id=parent,
            base=base,
            parameters=parameters,
            metrics=metrics,
        )
        refuse_revoked(lake, [*corpus.routes, *training.also], corpus.snapshot)
        verifiers = [verifier.name for verifier in config.curate.verifiers if verifier.gate]
        if is_main():
            for role in ROLES[kind]:
                (directory / role / "README.md").write_text(part_card(card, role, verifiers))
            finish(directory, card)
    barrier()
    card = read_card(directory)
    register(lake, card, [*corpus.routes, *training.also])
    return card


def _vocabularies(tokenizers: Path | None, kind: str) -> list[str]:
    """Digests of the tokenizers that are taken over."""
    if not tokenizers:
        return []
    return [digest(load_tokenizer(tokenizers / role).get_vocab()) for role in ROLES[kind]]


def _role_training(roles: Callable[[], Callable[[Role], RoleTraining]], role: Role) -> RoleTraining:
    return roles()(role)


def _role(
    config: Config,
    corpus: Corpus,
    role: Role,
    iteration: int,
    epochs: int,
    role_training: Callable[[], RoleTraining],
    lake: Lake,
    directory: Path,
    start: Path | None,
    tokenizers: Path | None,
    progress: Progress,
) -> tuple[dict[str, float], int]:
    """Train and save one role's model; (training metrics, parameters)."""
    made = prepare(config, corpus, role, iteration, epochs, role_training, directory, start, tokenizers)
    model, tokenizer = made.whole()
    model = on_device(model, pick_device(config.train.device))
    training = role_training()
    with tracked(config.train.trackers, config.name, f"{directory.name}/{role}", lake.root / TRACKING) as log:
        metrics = train(
            model,
            made.epochs,
            config.train,
            seed=config.seed + iteration,
            pad=padding(tokenizer),
            checkpoint=directory / f"{role}.checkpoint",
            loss_fn=training.loss,
            metrics_fn=training.metrics,
            validation=made.validation,
            progress=lambda update, total, loss: progress(role, update, total, loss),
            log=log,
        )
    weights = whole_weights(model)
    if is_main():
        trained, tokenizer = made.whole()
        take_over(trained, weights)
        save_part(trained, tokenizer, directory / role)
        if training.critic:
            training.critic.save(directory / role)
    if training.critic:
        metrics["explained_variance"] = training.critic.explained
    return metrics, sum(parameter.numel() for parameter in model.parameters())
