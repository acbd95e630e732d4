"""The distill stage: verified trajectories in the lake → a student's directory, named by what went into it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flywheel.agents.prompts import PAD, Role, Window
from flywheel.agents.tokens import PieceTokenizer, token_id
from flywheel.arrow import segments_from_arrow
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.datasets.leaks import refuse_leaks
from flywheel.distill.cards import part_card
from flywheel.distill.drawing import draw_weights
from flywheel.distill.examples import Example, example, windows_of
from flywheel.distill.policies import NOISY_EXPERT
from flywheel.distill.registry import newest, policy_directory, register
from flywheel.distill.renaming import exchangeable_names, renamed, shuffled
from flywheel.distill.students import (
    POLICY_FILE,
    ROLES,
    PolicyCard,
    acting_version,
    decoding_of,
    finish,
    limits_of,
    load_part,
    new_model,
    on_device,
    read_card,
    save_part,
)
from flywheel.distill.tokenizer import named_things, train_tokenizer
from flywheel.distill.train import pick_device, train
from flywheel.errors import FlywheelError
from flywheel.filters.balance import effective_share
from flywheel.trajectory import RouteTo, Segment, Trajectory, digest

Progress = Callable[[str, int, int, float], None]
"""Hears (role, updates done, updates in all, loss)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a student learns from: trajectories with their segments, and where each may teach."""

    trajectories: tuple[Trajectory, ...]
    segments: dict[str, list[Segment]]
    routes: dict[str, RouteTo]
    weights: dict[str, float]
    snapshot: int

    @property
    def digest(self) -> str:
        weighed = [(one, route, round(self.weights[one], 6)) for one, route in sorted(self.routes.items())]
        return digest("corpus", weighed, size=8)


def load_corpus(config: Config, lake: Lake, iteration: int) -> Corpus:
    """Training trajectories up to an iteration: verified ones, and teachers' that at least hold completed segments.

    A student's failed episode teaches nobody: its way to a milestone is mostly its own wandering. Raises `LeakError`
    where one of them is so like a held-out episode (`curate.leak`) that it gives its task away.
    """
    snapshot = lake.snapshot()
    rows = lake.sql(
        f"""select trajectory_id, route from trajectories
            where split = 'train' and purpose = 'collect' and iteration <= {iteration} and revoked is null
              and (route = '{RouteTo.SUPERVISED}' or route = '{RouteTo.EXECUTOR}' and policy = '{NOISY_EXPERT}')
            order by trajectory_id"""
    ).to_pylist()
    routes = {row["trajectory_id"]: RouteTo(row["route"]) for row in rows}
    if RouteTo.SUPERVISED not in routes.values():
        raise FlywheelError("no verified training trajectory in the lake; run `flywheel collect` and `flywheel curate`")
    segments: dict[str, list[Segment]] = {one: [] for one in routes}
    for part in segments_from_arrow(lake.sql("select * from segments order by trajectory_id, index")):
        if part.trajectory_id in segments:
            segments[part.trajectory_id].append(part)
    refuse_leaks(lake, list(routes), config.curate.leak)
    weighed = draw_weights(lake, list(routes), config.balance, iteration)
    return Corpus(tuple(lake.trajectories(list(routes))), segments, routes, weighed, snapshot)


def distill(
    config: Config, lake: Lake, kind: str, iteration: int, progress: Progress = lambda role, update, total, loss: None
) -> PolicyCard:
    """Distill a student of a kind (`hierarchical` or `flat`) from all that was verified up to an iteration.

    The policy id is a digest of corpus, settings and parent: distilling the same again finds it done. Later
    iterations start from the student of the iteration before.
    """
    corpus = load_corpus(config, lake, iteration)
    parent = newest(lake, kind, iteration - 1)
    limits, decoding = limits_of(config.student), decoding_of(config.student, config.seed)
    settings = [config.student.model_dump(), config.train.model_dump(exclude={"checkpoint_seconds"}), config.seed]
    policy_id = f"{kind}-{digest(kind, iteration, corpus.digest, settings, parent)}"
    directory = policy_directory(lake, policy_id)
    if not (directory / POLICY_FILE).is_file():
        parent_directory = policy_directory(lake, parent) if parent else None
        metrics = {"effective_share": effective_share(np.array(list(corpus.weights.values())))}
        parameters = 0
        for role in ROLES[kind]:
            said, size = _distill_role(config, corpus, role, iteration, directory, parent_directory, progress)
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
            trajectories=len(corpus.trajectories),
            training_digest=corpus.digest,
            config_digest=config.identity(),
            parent_policy_id=parent,
            parameters=parameters,
            metrics=metrics,
        )
        verifiers = [one.name for one in config.curate.verifiers if one.gate]
        for role in ROLES[kind]:
            (directory / role / "README.md").write_text(part_card(card, role, verifiers))
        finish(directory, card)
    card = read_card(directory)
    register(lake, card, list(corpus.routes))
    return card


def _distill_role(
    config: Config,
    corpus: Corpus,
    role: Role,
    iteration: int,
    directory: Path,
    parent_directory: Path | None,
    progress: Progress,
) -> tuple[dict[str, float], int]:
    """Train and save one role's model; (training metrics, parameters)."""
    windows = _windows(config, corpus, role)
    if parent_directory:
        model, tokenizer = load_part(parent_directory / role)
    else:
        texts = (piece.text for own in windows.values() for window in own for piece in window.pieces)
        tokenizer = train_tokenizer(texts, _names(corpus), config.student.vocabulary)
        model = new_model(config.student, tokenizer, config.seed)
    model = on_device(model, pick_device(config.train.device))
    passes = config.train.later_epochs if parent_directory else config.train.epochs
    epochs = {Role.PLANNER: passes.planner, Role.EXECUTOR: passes.executor, Role.FLAT: passes.flat}[role]
    metrics = train(
        model,
        [_epoch(config, corpus, windows, PieceTokenizer(tokenizer), iteration, epoch) for epoch in range(epochs)],
        config.train,
        seed=config.seed + iteration,
        pad=token_id(tokenizer, PAD),
        checkpoint=directory / f"{role}.checkpoint",
        progress=lambda update, total, loss: progress(role, update, total, loss),
    )
    save_part(on_device(model, "cpu"), tokenizer, directory / role)
    return metrics, model.num_parameters()


def _windows(config: Config, corpus: Corpus, role: Role) -> dict[str, list[Window]]:
    """Windows by trajectory. Flat and planner learn from verified episodes; the executor also from completed
    segments of the others."""
    limits = limits_of(config.student)
    return {
        one.trajectory_id: windows_of(one, corpus.segments[one.trajectory_id], limits, role)
        for one in corpus.trajectories
        if role is Role.EXECUTOR or corpus.routes[one.trajectory_id] is RouteTo.SUPERVISED
    }


def _epoch(
    config: Config,
    corpus: Corpus,
    windows: dict[str, list[Window]],
    tokens: PieceTokenizer,
    iteration: int,
    epoch: int,
) -> list[Example]:
    """The rows of one epoch. How often an episode comes follows its weight, and a share of them is renamed, as
    (seed, iteration, epoch, episode) decide."""
    names = exchangeable_names(corpus.trajectories)
    rows: list[Example] = []
    for one, own in windows.items():
        chance = random.Random(f"{config.seed}/{iteration}/{epoch}/{one}")
        for _ in range(int(corpus.weights[one] + chance.random())):
            mapping = shuffled(names, chance) if chance.random() < config.train.renamed else {}
            rows += [example(pieces, tokens) for pieces in renamed(own, mapping)]
    return rows


def _names(corpus: Corpus) -> list[str]:
    return named_things({step.action for one in corpus.trajectories for step in one.steps if step.trainable})
