"""Which of several attempts is thought most of: by a verifier, or by the student's own idea of where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.agents.collect import play
from flywheel.agents.context import FlatContext, HierarchicalContext, Limits
from flywheel.agents.episode import Job, Origin
from flywheel.agents.policy import Policy
from flywheel.agents.prompts import END, PAD, Role, Window
from flywheel.agents.tokens import PieceTokenizer, token_id
from flywheel.config import Config, VerifierConfig
from flywheel.datasets.lake import Lake
from flywheel.distill.critics import ValueHead, fit, states_of
from flywheel.distill.examples import observation_of
from flywheel.distill.models import load_part
from flywheel.distill.students import ROLES, on_device, read_card
from flywheel.distill.train import pick_device
from flywheel.environments.protocol import Observation, World
from flywheel.errors import TrainingError
from flywheel.filters.batch import Floats, batch_of
from flywheel.filters.catalog import Tools, make_verifiers
from flywheel.filters.verifier import Verifier
from flywheel.trajectory import Split, Trajectory, digest

VALUE = "value"
FIT_START, FIT_TASKS = 8000, 200
"""Training tasks from whose outcomes a value head learns; collection draws from 0, practice from 6000."""
FIT_PURPOSE = "evaluate+fit"
HELD = 5
"""One task in so many tells how good the head is."""


class Chooser(Protocol):
    """Says what finished attempts are worth. `notes`: how far it can be trusted."""

    @property
    def notes(self) -> Mapping[str, float]: ...

    def worth(self, lake: Lake, ids: Sequence[str]) -> dict[str, float]: ...


def chooser(
    config: Config, lake: Lake, world: World, folder: Path, student: Policy, by: str, progress: Callable[[int], None]
) -> Chooser:
    """`value`, or a verifier by name."""
    if by == VALUE:
        return _by_value(config, lake, world, folder, student, progress)
    made = make_verifiers([VerifierConfig(name=by)], Tools(world, config.data_dir / "judge"))
    return ByVerifier(made[0])


@dataclass(frozen=True, slots=True)
class ByVerifier:
    """Completion of what keeps to the rules; what does not is worth less than anything."""

    verifier: Verifier
    notes: Mapping[str, float] = field(default_factory=dict)

    def worth(self, lake: Lake, ids: Sequence[str]) -> dict[str, float]:
        said = self.verifier.verify(batch_of(lake.trajectories(list(ids))))
        return {one.trajectory_id: one.completion if one.integrity >= one.integrity_threshold else -1.0 for one in said}


@dataclass(frozen=True, slots=True)
class ByValue:
    """A linear head on what the student's own model makes of the end of an episode (outcome-supervised, as in Cobbe et
    al. 2021, arXiv 2110.14168). It sees what the agent saw, nothing else."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    role: Role
    batch_tokens: int
    head: ValueHead
    notes: Mapping[str, float]

    def worth(self, lake: Lake, ids: Sequence[str]) -> dict[str, float]:
        names, features_MD = _features(self, lake.trajectories(list(ids)))
        return dict(zip(names, self.head(features_MD).tolist(), strict=True))


def _by_value(
    config: Config, lake: Lake, world: World, folder: Path, student: Policy, progress: Callable[[int], None]
) -> ByValue:
    """Fit a head on the outcomes of training tasks that the student plays as it will play the held-out ones."""
    tasks = world.tasks(Split.TRAIN, FIT_START, FIT_TASKS)
    origin = Origin(0, FIT_PURPOSE, config.identity())
    ids = play(config, lake, world, student, [Job(task) for task in tasks], origin, progress)
    played = [one for one in lake.trajectories(sorted(lake.known_ids(ids))) if one.steps]
    if len(played) < 2:
        raise TrainingError("no episode of the student was played to its end; a value head has nothing to learn from")
    card = read_card(folder)
    role = ROLES[card.kind][-1]
    model, tokenizer = load_part(folder / role)
    model = on_device(model, pick_device(config.train.device))
    blank = ByValue(
        model, tokenizer, card.limits, role, config.train.batch_tokens, ValueHead(np.zeros(1), 0.0, 0.0), {}
    )
    names, features_MD = _features(blank, played)
    won = {one.trajectory_id: float(one.success) for one in played}
    group = {one.trajectory_id: one.task_group for one in played}
    won_M = np.array([won[one] for one in names])
    held_M = np.array([int(digest("fit", group[one]), 16) % HELD == 0 for one in names], np.bool_)
    head = fit(features_MD, won_M, held_M)
    notes = {"head explains": head.explained, "fitted on": float(len(names)), "of them won": float(won_M.mean())}
    return ByValue(model, tokenizer, card.limits, role, config.train.batch_tokens, head, notes)


def _features(reads: ByValue, episodes: Sequence[Trajectory]) -> tuple[list[str], Floats]:
    """(ids, what the model makes of the end of each episode)."""
    ends = [(one.trajectory_id, [_end(one, reads.limits, reads.role)]) for one in episodes if one.steps]
    pad = token_id(reads.tokenizer, PAD)
    states = states_of(reads.model, ends, PieceTokenizer(reads.tokenizer), reads.batch_tokens, pad)
    lengths = {one.trajectory_id: one.length for one in episodes}
    last_M = states.step_M == np.array([lengths[one] for one in states.trajectory_M])
    names = [one for one, last in zip(states.trajectory_M, last_M.tolist(), strict=True) if last]
    return names, np.asarray(states.features_MD[last_M], np.float64)


def _end(one: Trajectory, limits: Limits, role: Role) -> Window:
    """What the agent would read at the end, marked as if one more decision fell there."""
    context = (FlatContext if role is Role.FLAT else HierarchicalContext)(one.instruction, limits)
    for step in one.steps:
        seen = observation_of(step)
        if isinstance(context, HierarchicalContext):
            context.follow(seen, step.action, step.subgoal, switched=step.switched)
        else:
            context.observe(seen)
            context.act(seen, step.action)
    last = one.steps[-1]
    window = context.observe(Observation(one.final_observation, one.final_event, place=last.place))
    window.act(END, target=True, decision=len(one.steps))
    return window
