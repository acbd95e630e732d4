"""Best of n: which of several attempts a verifier, or the student's own value head, rates highest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel.agents.contexts.history import FlatContext, HierarchicalContext, Limits
from flywheel.agents.contexts.language import language_of, markers_of, padding
from flywheel.agents.contexts.prompts import END, Role, Window
from flywheel.agents.policy import Policy
from flywheel.config.curate import VerifierConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import observations_of
from flywheel.distill.credit.critics import ValueHead, fit, states_of
from flywheel.environments.protocol import Observation, World
from flywheel.errors import TrainingError
from flywheel.filters.batch import Floats, batch_of
from flywheel.filters.verifiers.catalog import Tools, make_verifiers
from flywheel.filters.verifiers.protocol import Verifier
from flywheel.policies.card import ROLES, read_card
from flywheel.policies.models import load_part
from flywheel.policies.students import on_device
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import play
from flywheel.rollouts.tasks import task_source
from flywheel.runtime.devices import pick_device
from flywheel.trajectory import StopReason, Trajectory, digest

VALUE = "value"
FIT_START, FIT_TASKS = 8000, 200
"""Training tasks from whose outcomes a value head learns; collection draws from 0, self-play from 6000."""
FIT_PURPOSE = "evaluate+fit"
KNOWING = frozenset({"privileged", "process", "judge", "ensemble"})
"""Verifiers that may know a task's solution: what they choose is a bound, not something that can be had."""
HELD = 5
"""One task in so many tells how good a head is."""
Moment = tuple[str, Window, float]
"""(task group, what is read, what it should say)."""


class Chooser(Protocol):
    """Says what finished attempts are worth. `notes`: how far it can be trusted."""

    @property
    def notes(self) -> Mapping[str, float]: ...

    def worth(self, lake: Lake, ids: Sequence[str]) -> dict[str, float]: ...


def chooser(
    config: Config, lake: Lake, world: World, folder: Path, student: Policy, by: str, progress: Callable[[int], None]
) -> Chooser:
    """`value`, or a verifier by name."""
    if by != VALUE:
        made = make_verifiers([VerifierConfig(name=by)], Tools(world, config.data_dir / "judge"))
        return ByVerifier(made[0])
    encoder = StateEncoder.of(config, folder)
    played = outcomes(config, lake, world, student, progress)
    head, notes = fitted(
        encoder,
        [(trajectory.task_group, encoder.end(trajectory), float(bool(trajectory.success))) for trajectory in played],
    )
    return ByValue(encoder, head, notes)


@dataclass(frozen=True, slots=True)
class ByVerifier:
    """Completion of what keeps to the rules; what does not is worth less than anything."""

    verifier: Verifier
    notes: Mapping[str, float] = field(default_factory=dict)

    def worth(self, lake: Lake, ids: Sequence[str]) -> dict[str, float]:
        verdicts = self.verifier.verify(batch_of(lake.trajectories(list(ids))))
        return {
            verdict.trajectory_id: verdict.completion if verdict.integrity >= verdict.integrity_threshold else -1.0
            for verdict in verdicts
        }


@dataclass(frozen=True, slots=True)
class StateEncoder:
    """A student's model as something that looks at windows: the executor's, or a flat student's."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    role: Role
    batch_tokens: int

    @staticmethod
    def of(config: Config, folder: Path) -> StateEncoder:
        card = read_card(folder)
        role = ROLES[card.kind][-1]
        model, tokenizer = load_part(folder / role)
        model = on_device(model, pick_device(config.train.device))
        return StateEncoder(model, tokenizer, card.limits, role, config.train.batch_tokens)

    def features(self, windows: Sequence[tuple[str, Window]]) -> tuple[list[str], Floats, int]:
        """(names, what the model makes of the end of each window, tokens read). Windows end in a marked word."""
        tokens, pad = markers_of(language_of(self.tokenizer)), padding(self.tokenizer)
        only = [(name, [_only_end(window)]) for name, window in windows]
        states = states_of(self.model, only, tokens, self.batch_tokens, pad)
        read = sum(len(tokens.context(window.pieces)) for _, window in windows)
        return states.trajectory_M, np.asarray(states.features_MD, np.float64), read

    def end(self, trajectory: Trajectory) -> Window:
        """What the agent would read at the end of an episode, marked as if one more decision fell there."""
        context = (FlatContext if self.role is Role.FLAT else HierarchicalContext)(trajectory.instruction, self.limits)
        for step, seen in zip(trajectory.steps, observations_of(trajectory), strict=True):
            if isinstance(context, HierarchicalContext):
                context.follow(seen, step.action, step.subgoal, new_subgoal=step.new_subgoal)
            else:
                context.observe(seen)
                context.act(seen, step.action)
        last = Observation(
            trajectory.final_observation, trajectory.final_feedback, location=trajectory.steps[-1].location
        )
        window = context.observe(last)
        window.end_with(END, target=True, decision=len(trajectory.steps))
        return window


@dataclass(frozen=True, slots=True)
class ByValue:
    """A linear head on what the student's model makes of the end of an episode (outcome supervision, as in Cobbe et al.
    2021, arXiv 2110.14168). It sees what the agent saw, nothing else."""

    encoder: StateEncoder
    head: ValueHead
    notes: Mapping[str, float]

    def worth(self, lake: Lake, ids: Sequence[str]) -> dict[str, float]:
        ends = [
            (trajectory.trajectory_id, self.encoder.end(trajectory))
            for trajectory in lake.trajectories(list(ids))
            if trajectory.steps
        ]
        names, features_MD, _ = self.encoder.features(ends)
        return dict(zip(names, self.head(features_MD).tolist(), strict=True))


def outcomes(
    config: Config, lake: Lake, world: World, student: Policy, progress: Callable[[int], None]
) -> list[Trajectory]:
    """How a student fares on training tasks that are kept for this."""
    tasks = task_source(config, world).practice(FIT_START, FIT_TASKS)
    origin = Origin(0, FIT_PURPOSE, config.identity())
    ids = play(config, lake, world, student, [Job(task) for task in tasks], origin, progress)
    trajectories = lake.trajectories(sorted(lake.known_ids(ids)))
    played = [
        trajectory
        for trajectory in trajectories
        if trajectory.steps and trajectory.stop_reason is not StopReason.INFRASTRUCTURE
    ]
    if len(played) < 2:
        raise TrainingError("no episode of the student was played to its end; a value head has nothing to learn from")
    return played


def fitted(encoder: StateEncoder, moments: Sequence[Moment]) -> tuple[ValueHead, dict[str, float]]:
    """A head that says what moments should say, and how well it does so on tasks that were held out."""
    names, features_MD, _ = encoder.features([(str(number), window) for number, (_, window, _) in enumerate(moments)])
    rows = [moments[int(name)] for name in names]
    told_M = np.array([outcome for _, _, outcome in rows])
    held_M = np.array([int(digest("fit", group), 16) % HELD == 0 for group, _, _ in rows], np.bool_)
    head = fit(features_MD, told_M, held_M)
    return head, {"head explains": head.explained, "fitted on": float(len(rows)), "of them won": float(told_M.mean())}


def _only_end(window: Window) -> Window:
    """The window with its last word as the only decision."""
    *before, last = window.pieces
    return Window([*(replace(piece, target=False, decision=-1) for piece in before), last])
