"""Training rows: stored trajectories are played back through the very contexts that rollouts use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.agents.contexts.history import FlatContext, HierarchicalContext, Limits
from flywheel.agents.contexts.language import Language, MarkerLanguage, Weigh
from flywheel.agents.contexts.prompts import Piece, Role, SubgoalOutcome, Window
from flywheel.environments.catalog import GATEWAY
from flywheel.environments.protocol import Observation
from flywheel.messages import Message
from flywheel.trajectory import Segment, Step, Trajectory


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised window: ids_T, and how much each counts as a target; 0 for all that are not the agent's words.

    `columns`: what an objective needs to know of each token, (T, …). `group`: windows of one group, as the two sides
    of a preference pair, are learned from together.
    """

    ids_T: NDArray[np.int32]
    weight_T: NDArray[np.float32]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    group: int = -1


def observation_of(step: Step) -> Observation:
    return Observation(
        step.observation,
        step.feedback,
        step.document,
        step.location,
        step.state_key,
        step.valid_actions,
        step.whole_view,
    )


def observations_of(trajectory: Trajectory) -> list[Observation]:
    """What the agent saw at each step, as the contexts of a live rollout read it. What an agent with a prompt of its
    own was asked first is its task."""
    seen = [replace(observation_of(step), messages=step.inputs, tools=trajectory.tools) for step in trajectory.steps]
    if not trajectory.environment.startswith(GATEWAY):
        return seen
    tools = trajectory.tools or "[]"
    first, *rest = [replace(observation, whole=True, tools=tools) for observation in seen]
    prompt = trajectory.system if trajectory.system and trajectory.system not in first.text else ""
    opening = "\n\n".join(filter(None, (prompt, first.text)))
    asked = (*([Message("system", prompt)] if prompt else []), *(first.messages or ()))
    return [replace(first, text=opening, messages=asked, opens_task=True), *rest]


def _taught(step: Step) -> str | None:
    """What a teacher that watched would rather have done, if it was something else."""
    return step.teacher_action if step.teacher_action != step.action else None


def flat_windows(trajectory: Trajectory, limits: Limits) -> list[Window]:
    """Windows of the flat student; injected actions are context, never targets."""
    windows: list[Window] = []
    context = FlatContext(trajectory.instruction, limits, archive=windows)
    for step, observation in zip(trajectory.steps, observations_of(trajectory), strict=True):
        window = context.observe(observation)
        if taught := _taught(step):
            windows.append(window.branch(taught))
        context.act(observation, step.action, target=step.trainable and not taught)
    return [*windows, *([context.window] if context.window else [])]


def hierarchical_windows(
    trajectory: Trajectory, segments: Sequence[Segment], limits: Limits, role: Role
) -> list[Window]:
    """Windows of the planner or the executor. Steps of unfinished segments are context only."""
    unread = Role.EXECUTOR if role is Role.PLANNER else Role.PLANNER
    executor: list[Window] = []
    planner: list[Window] = []
    context = HierarchicalContext(trajectory.instruction, limits, archive=executor, plan_archive=planner, unread=unread)
    starts = {segment.start: segment for segment in segments}
    current = segments[0]
    for step, observation in zip(trajectory.steps, observations_of(trajectory), strict=True):
        context.observe(observation)
        if failed := context.failed:
            context.finish(failed)
        if step.index in starts:
            if not context.must_plan:
                context.finish(SubgoalOutcome.DONE, target=current.completed)
            current = starts[step.index]
        if context.must_plan:
            context.plan(observation)
            context.adopt(observation, current.subgoal, target=current.completed)
        taught = _taught(step)
        if taught and context.window is not None and role is Role.EXECUTOR:
            executor.append(context.window.branch(taught))
        context.act(observation, step.action, target=step.trainable and current.completed and not taught)
    executor += [context.window] if context.window else []
    planner += [context.plan_window] if context.plan_window else []
    return planner if role is Role.PLANNER else executor


def examples(pieces: Sequence[Piece], language: Language, weigh: Weigh = lambda piece: 1.0) -> list[Example]:
    """Tokenise one window's pieces; `weigh` says how much a target counts."""
    return [
        Example(np.asarray(ids, np.int32), np.asarray(weights, np.float32))
        for ids, weights in language.rows(pieces, weigh)
    ]


def example(pieces: Sequence[Piece], tokens: MarkerLanguage, weigh: Weigh = lambda piece: 1.0) -> Example:
    """A window in markers, which is one row."""
    (whole,) = examples(pieces, tokens, weigh)
    return whole


def windows_of(trajectory: Trajectory, segments: Sequence[Segment], limits: Limits, role: Role) -> list[Window]:
    """The windows of one role that hold at least one target."""
    flat = role is Role.FLAT
    windows = flat_windows(trajectory, limits) if flat else hierarchical_windows(trajectory, segments, limits, role)
    return [window for window in windows if any(piece.target for piece in window.pieces)]
