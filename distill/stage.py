"""The distill stage: verified trajectories in the lake → a student's directory, named by what went into it.

A student is cloned from a corpus; `train.refine` lets it go on under another objective, as a student of its own whose
parent is the cloned one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from flywheel.agents.contexts.prompts import PAD, WORDING, Role
from flywheel.agents.contexts.tokenization import token_id
from flywheel.config.distill import Epochs, RefineConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.contamination import refuse_contamination
from flywheel.distill.algorithms.dpo_pairs import pairs_of
from flywheel.distill.algorithms.phases import Lesson, cloned, lessons
from flywheel.distill.algorithms.ppo_phase import practice_lessons
from flywheel.distill.algorithms.ppo_rollouts import SEGMENTS, practise
from flywheel.distill.algorithms.prepare_rows import prepare
from flywheel.distill.data.corpus import Corpus, load_corpus, refuse_revoked
from flywheel.distill.training.checkpoints import take_over, whole_weights
from flywheel.distill.training.loop import train
from flywheel.distill.training.tracking import tracked
from flywheel.errors import ConfigError, PolicyError, TrainingError
from flywheel.filters.balance import effective_share
from flywheel.policies.card import (
    POLICY_FILE,
    ROLES,
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
AD_HOC = 0
"""The iteration of students that no turn asked for."""
UNSEEN = {"checkpoint_seconds", "device", "processes", "refine", "sharing", "trackers"}
"""Settings of training that another student does not come of."""


TRACKING = "tracking"
"""The folder of training curves, beside the lake."""


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
    refine = config.train.refine
    if refine and refine.objective == "preference" and kind != "flat":
        raise ConfigError("preference compares whole episodes and refines flat students; set --kind flat")
    corpus = load_corpus(config, lake, iteration, condition, dataset, hierarchical=kind == "hierarchical")
    number = AD_HOC if corpus.condition else iteration
    parent = newest(lake, kind, number - 1) if number > 1 else ""
    later = config.train.later_epochs if parent else config.train.epochs
    plain = Plan(lambda: cloned)
    student = _student(config, lake, corpus, kind, number, parent, later, plain, progress)
    if not refine:
        return student
    teacher = ""
    if refine.objective == "imitation":
        wide = config.model_copy(update={"student": refine.teacher, "seed": refine.teacher_seed})
        epochs = refine.teacher_epochs or config.train.epochs
        reads_like = replace(plain, tokenizers=policy_directory(lake, student.policy_id))
        teacher = _student(wide, lake, corpus, kind, AD_HOC, "", epochs, reads_like, progress).policy_id
    if refine.objective == "proximal":
        return _practice(config, refine, lake, kind, number, student, progress)
    pairs = pairs_of(lake, corpus, number) if refine.objective == "preference" else []
    worse = sorted({rejected for _, rejected in pairs} - corpus.routes.keys())
    refuse_contamination(lake, worse, config.curate.leak)
    phase = config.model_copy(
        update={"train": config.train.model_copy(update={"learning_rate": refine.learning_rate, "warmup": 0.1})}
    )
    plan = Plan(
        lambda: lessons(phase, refine, lake, corpus, ROLES[kind], student, teacher, pairs, iteration),
        extra=(refine.model_dump(mode="json"), teacher, pairs),
        also=worse,
    )
    return _student(phase, lake, corpus, kind, number, student.policy_id, refine.epochs, plan, progress)


def _practice(
    config: Config, refine: RefineConfig, lake: Lake, kind: str, number: int, student: PolicyCard, progress: Progress
) -> PolicyCard:
    """Rounds of practice; each makes a student whose parent played it."""
    own: dict[str, object] = {"learning_rate": refine.learning_rate, "warmup": 0.1, "renamed": 0.0, "held_out": 0.0}
    if kind == "hierarchical":
        own["segments"] = SEGMENTS
    phase = config.model_copy(update={"train": config.train.model_copy(update=own)})
    for played in range(refine.practice.rounds):
        corpus = practise(phase, refine.practice, lake, student.policy_id, played)
        teach = partial(practice_lessons, phase, refine, lake, corpus, ROLES[kind], student, number)
        plan = Plan(teach, extra=(refine.model_dump(mode="json"), played))
        student = _student(phase, lake, corpus, kind, number, student.policy_id, refine.epochs, plan, progress)
    return student


@dataclass(frozen=True, slots=True)
class Plan:
    """How a student is taught: its lessons by role, made only if it has to be trained; what else its name depends on;
    trajectories that teach it beside the corpus; and the student whose tokenizers it takes over."""

    lessons: Callable[[], Callable[[Role], Lesson]]
    extra: tuple[object, ...] = ()
    also: Sequence[str] = ()
    tokenizers: Path | None = None

    def vocabularies(self, kind: str) -> list[str]:
        """Digests of the tokenizers that are taken over."""
        if not self.tokenizers:
            return []
        return [digest(load_tokenizer(self.tokenizers / role).get_vocab()) for role in ROLES[kind]]


def _student(
    config: Config,
    lake: Lake,
    corpus: Corpus,
    kind: str,
    iteration: int,
    parent: str,
    epochs: Epochs,
    plan: Plan,
    progress: Progress,
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
        *plan.extra,
        *plan.vocabularies(kind),
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
        lessons_of = cache(plan.lessons)
        for role in ROLES[kind]:
            passes = epochs.model_dump()[role]
            lesson = cache(partial(_lesson, lessons_of, role))
            said, size = _role(
                config, corpus, role, iteration, passes, lesson, lake, directory, start, plan.tokenizers, progress
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
            trajectories=len(corpus.routes) + len(plan.also),
            training_digest=corpus.digest,
            config_digest=config.identity(),
            parent_policy_id=parent,
            base=base,
            parameters=parameters,
            metrics=metrics,
        )
        refuse_revoked(lake, [*corpus.routes, *plan.also], corpus.snapshot)
        verifiers = [one.name for one in config.curate.verifiers if one.gate]
        if is_main():
            for role in ROLES[kind]:
                (directory / role / "README.md").write_text(part_card(card, role, verifiers))
            finish(directory, card)
    barrier()
    card = read_card(directory)
    register(lake, card, [*corpus.routes, *plan.also])
    return card


def _lesson(lessons: Callable[[], Callable[[Role], Lesson]], role: Role) -> Lesson:
    return lessons()(role)


def _role(
    config: Config,
    corpus: Corpus,
    role: Role,
    iteration: int,
    epochs: int,
    lesson: Callable[[], Lesson],
    lake: Lake,
    directory: Path,
    start: Path | None,
    tokenizers: Path | None,
    progress: Progress,
) -> tuple[dict[str, float], int]:
    """Train and save one role's model; (training metrics, parameters)."""
    made = prepare(config, corpus, role, iteration, epochs, lesson, directory, start, tokenizers)
    model, tokenizer = made.whole()
    model = on_device(model, pick_device(config.train.device))
    taught = lesson()
    with tracked(config.train.trackers, config.name, f"{directory.name}/{role}", lake.root / TRACKING) as log:
        metrics = train(
            model,
            made.epochs,
            config.train,
            seed=config.seed + iteration,
            pad=token_id(tokenizer, PAD),
            checkpoint=directory / f"{role}.checkpoint",
            objective=taught.objective,
            watch=taught.watch,
            held_out=made.held_out,
            progress=lambda update, total, loss: progress(role, update, total, loss),
            log=log,
        )
    weights = whole_weights(model)
    if is_main():
        trained, tokenizer = made.whole()
        take_over(trained, weights)
        save_part(trained, tokenizer, directory / role)
        if taught.head:
            taught.head.save(directory / role)
    if taught.head:
        metrics["explained_variance"] = taught.head.explained
    return metrics, sum(one.numel() for one in model.parameters())
