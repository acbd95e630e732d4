"""Provenance: which fields of a record replay reproduces, which only our own policies can have written, and which are
unverified claims.

An imported record is a claim. Its provenance is set by whoever writes it into the lake, what it says of its own is kept
in `claims`, and training reads of it only what replay reproduces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from flywheel.errors import RecordError
from flywheel.trajectory import OURS, SCHEMA_VERSION, Trajectory, TrajectoryOrigin

IMPORTED = "imported"
"""Role and purpose of what others played."""


class Evidence(StrEnum):
    """Why training may read a field."""

    REPLAYED = "replayed"
    """The replay verifier reproduces it, or `integrity` derives it from what it reproduces."""
    AUTHORED = "authored"
    """Written by a policy: it teaches only with provenance, and reads as absent without."""
    WRITTEN = "written"
    """Set or recomputed by the writer of the lake."""
    UNREAD = "unread"
    """Training does not read it."""


_WITHOUT_AUTHOR: Mapping[str, Any] = {
    "thought": "",
    "output": None,
    "subgoal": "",
    "new_subgoal": False,
    "teacher_action": None,
    "audit": "",
    "logprobs": None,
    "top_tokens": None,
    "top_logprobs": None,
    "trainable": True,
}
"""Authored fields, with what they read as without provenance."""
STEP_EVIDENCE: Mapping[str, Evidence] = {
    "index": Evidence.REPLAYED,
    "observation": Evidence.REPLAYED,
    "feedback": Evidence.REPLAYED,
    "document": Evidence.REPLAYED,
    "location": Evidence.REPLAYED,
    "state_key": Evidence.REPLAYED,
    "valid_actions": Evidence.REPLAYED,
    "whole_view": Evidence.REPLAYED,
    "action": Evidence.REPLAYED,
    "reward": Evidence.REPLAYED,
    "progress": Evidence.REPLAYED,
    "terminated": Evidence.REPLAYED,
    "truncated": Evidence.REPLAYED,
    **dict.fromkeys(_WITHOUT_AUTHOR, Evidence.AUTHORED),
    "policy_id": Evidence.WRITTEN,
    "policy_version": Evidence.WRITTEN,
    "prompt_tokens": Evidence.UNREAD,
    "completion_tokens": Evidence.UNREAD,
    "seconds": Evidence.UNREAD,
    "screenshot": Evidence.UNREAD,
    "cost": Evidence.UNREAD,
    "inputs": Evidence.UNREAD,
}
"""Every column of a step. A test holds that training rows follow it."""
TRAJECTORY_EVIDENCE: Mapping[str, Evidence] = {
    "environment": Evidence.REPLAYED,
    "parameters": Evidence.REPLAYED,
    "split": Evidence.REPLAYED,
    "seed": Evidence.REPLAYED,
    "task_name": Evidence.REPLAYED,
    "task_data": Evidence.REPLAYED,
    "family": Evidence.WRITTEN,
    "instruction": Evidence.REPLAYED,
    "stop_reason": Evidence.UNREAD,
    "success": Evidence.REPLAYED,
    "score": Evidence.UNREAD,
    "total_reward": Evidence.UNREAD,
    "length": Evidence.REPLAYED,
    "final_observation": Evidence.REPLAYED,
    "final_feedback": Evidence.REPLAYED,
    "final_state_key": Evidence.REPLAYED,
    "trajectory_id": Evidence.WRITTEN,
    "task_id": Evidence.WRITTEN,
    "task_group": Evidence.WRITTEN,
    "policy": Evidence.WRITTEN,
    "policy_id": Evidence.WRITTEN,
    "policy_version": Evidence.WRITTEN,
    "iteration": Evidence.WRITTEN,
    "purpose": Evidence.WRITTEN,
    "attempt": Evidence.WRITTEN,
    "parent_policy_id": Evidence.WRITTEN,
    "config_digest": Evidence.WRITTEN,
    "schema_version": Evidence.WRITTEN,
    "origin": Evidence.WRITTEN,
    "origin_source": Evidence.WRITTEN,
    "origin_by": Evidence.WRITTEN,
    "claims": Evidence.WRITTEN,
    "error": Evidence.UNREAD,
    "started_at": Evidence.UNREAD,
    "extra": Evidence.UNREAD,
    "tokens": Evidence.UNREAD,
    "cost": Evidence.UNREAD,
    "subject": Evidence.UNREAD,
    "system": Evidence.UNREAD,
    "tools": Evidence.UNREAD,
    "final_inputs": Evidence.UNREAD,
    "parent_trajectory_id": Evidence.UNREAD,
}
"""Every column of a trajectory."""
_CLAIMED = (
    "trajectory_id",
    "policy",
    "policy_id",
    "policy_version",
    "iteration",
    "purpose",
    "attempt",
    "parent_policy_id",
    "config_digest",
    "schema_version",
    "extra",
    "subject",
    "parent_trajectory_id",
)
LATEST = 253_402_300_800
"""The year 10000, in seconds since 1970."""


def teachable(trajectory: Trajectory) -> Trajectory:
    """The trajectory as training may read it: what only a policy can have written is absent without provenance, and
    actions that changed nothing are no targets. The loss mask of another tool's record can only exclude steps."""
    if trajectory.origin in OURS:
        return trajectory
    after = [*((step.state_key, step.document) for step in trajectory.steps[1:]), (trajectory.final_state_key, "")]
    steps = []
    for step, (state, note) in zip(trajectory.steps, after, strict=True):
        idle = step.state_key == state != "" and not note and not step.reward
        weight = step.trainable if trajectory.claims is None else True
        steps.append(replace(step, **{**_WITHOUT_AUTHOR, "trainable": weight and not idle}))
    return replace(trajectory, steps=tuple(steps))


def claims_of(trajectory: Trajectory) -> str:
    """What a record of ours says of its own provenance, as canonical JSON. Steps by other policies are named one by
    one."""
    claims = {name: getattr(trajectory, name) for name in _CLAIMED}
    others = {
        str(step.index): [step.policy_id, step.policy_version]
        for step in trajectory.steps
        if (step.policy_id, step.policy_version) != (trajectory.policy_id, trajectory.policy_version)
    }
    return json.dumps({**claims, "steps": others}, sort_keys=True)


def with_claims(trajectory: Trajectory) -> Trajectory:
    """An imported record as its document had it: the inverse of `as_claim`, for exports."""
    if trajectory.claims is None:
        return trajectory
    claims = json.loads(trajectory.claims)
    others = claims.pop("steps", {})
    default_policy = [claims["policy_id"], claims["policy_version"]]
    steps = []
    for step in trajectory.steps:
        policy_id, version = others.get(str(step.index), default_policy)
        steps.append(replace(step, policy_id=policy_id, policy_version=version))
    return replace(trajectory, **claims, claims=None, steps=tuple(steps))


def as_claim(trajectory: Trajectory, identity: str, source: str, by: str) -> Trajectory:
    """A record as an import writes it: who played it, when and for what is moved to `claims`.

    `identity` becomes the id of a record of ours; other formats have ids that are digests already. Task id and group
    follow from the task.
    """
    task = trajectory.task
    named = replace(
        trajectory,
        family="",
        task_id=task.task_id,
        task_group=task.group,
        policy=IMPORTED,
        iteration=0,
        purpose=IMPORTED,
        attempt=0,
        parent_policy_id="",
        config_digest="",
        schema_version=SCHEMA_VERSION,
        origin=TrajectoryOrigin.IMPORTED,
        origin_source=source,
        origin_by=by,
    )
    if trajectory.claims is None:
        return named
    policy_id = f"{trajectory.policy}@{trajectory.policy_version}"[:64]
    return replace(
        named,
        trajectory_id=identity,
        policy_id=policy_id,
        extra=None,
        subject=None,
        parent_trajectory_id=None,
        steps=tuple(replace(step, policy_id=policy_id) for step in trajectory.steps),
    )


def as_trusted(trajectory: Trajectory, source: str, by: str) -> Trajectory:
    """A record whose own provenance is accepted (`import --trust`)."""
    return replace(trajectory, claims=None, origin=TrajectoryOrigin.TRUSTED, origin_source=source, origin_by=by)


def check_numbers(trajectory: Trajectory) -> None:
    """Raise `RecordError` for numbers that no episode can have: counts below zero, scores outside [0, 1], NaN, steps
    that are not numbered, a limit that ended a success."""
    if [step.index for step in trajectory.steps] != list(range(trajectory.length)):
        raise RecordError("steps are not numbered 0, 1, … up to the length")
    for name in ("score", "tokens", "cost", "iteration", "attempt", "started_at", "total_reward"):
        _check(name, getattr(trajectory, name), _BOUNDS.get(name, (0.0, math.inf)))
    for step in trajectory.steps:
        for name in ("reward", "progress", "seconds", "cost", "prompt_tokens", "completion_tokens"):
            _check(f"{name} of step {step.index}", getattr(step, name), _BOUNDS.get(name, (0.0, math.inf)))
        for row in (step.logprobs or (), *(step.top_logprobs or ())):
            for value in row if isinstance(row, tuple) else (row,):
                _check(f"a log-probability of step {step.index}", value, (-math.inf, 1e-3), finite=False)
        if step.truncated and (step.terminated or trajectory.success):
            raise RecordError(f"step {step.index} was truncated, in an episode that ended of itself")


_ANY = (-math.inf, math.inf)
_BOUNDS = {
    "score": (0.0, 1.0),
    "progress": (0.0, 1.0),
    "reward": _ANY,
    "total_reward": _ANY,
    "started_at": (0.0, LATEST),
}


def _check(name: str, value: float | None, bounds: tuple[float, float], *, finite: bool = True) -> None:
    low, high = bounds
    if value is None:
        return
    if not low <= value <= high or (finite and not math.isfinite(value)):
        raise RecordError(f"{name} is {value:.6g}, which no episode can have")
