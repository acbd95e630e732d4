"""The collect stage: play tasks with a policy and commit every finished episode to the lake."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.agents.policy import Policy
from flywheel.agents.rollout import Job, Origin, rollouts
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.datasets.splits import assign
from flywheel.environments.protocol import World
from flywheel.trajectory import StopReason, Task, Trajectory, trajectory_id

COMMIT_EVERY = 32
COMMIT_STEPS = 4096
"""Long episodes are committed a few at a time, so that memory holds no more."""
INFRASTRUCTURE_RETRIES = 2
RETRY_STRIDE = 1000
"""Retries of broken episodes count their attempts from here, apart from planned attempts."""


def play(
    config: Config,
    lake: Lake,
    world: World,
    policy: Policy,
    jobs: Sequence[Job],
    origin: Origin,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Play what the lake does not hold yet; the ids of all the jobs' trajectories, in order.

    The tasks' splits are recorded before the first of them is played; raises `LeakError` if they were decided
    otherwise. An episode that the infrastructure broke is committed as such, and its task is tried again under a new
    attempt.
    """
    assign(lake, [job.task for job in jobs])
    ids: dict[str, Job] = {}
    waiting = list(jobs)
    for retry in range(1 + INFRASTRUCTURE_RETRIES):
        named = {_id(policy, job, origin): job for job in waiting}
        ids |= named
        known = lake.known_ids(list(named))
        progress(len(known))
        broken = [named[one] for one in _broken(lake, known)]
        batch: list[Trajectory] = []
        for trajectory in rollouts(
            policy,
            [job for one, job in named.items() if one not in known],
            world.environments(config.environment.parallel),
            max_steps=config.environment.max_steps,
            origin=origin,
        ):
            batch.append(trajectory)
            if trajectory.stop_reason is StopReason.INFRASTRUCTURE:
                broken.append(named[trajectory.trajectory_id])
            if len(batch) == COMMIT_EVERY or sum(one.length for one in batch) >= COMMIT_STEPS:
                lake.append(batch, f"{origin.purpose} {policy.name} iteration {origin.iteration}")
                progress(len(batch))
                batch = []
        lake.append(batch, f"{origin.purpose} {policy.name} iteration {origin.iteration}")
        progress(len(batch))
        if not broken or retry == INFRASTRUCTURE_RETRIES:
            break
        waiting = [Job(job.task, job.attempt + RETRY_STRIDE) for job in broken]
    return list(ids)


def rehearse(
    config: Config, world: World, policy: Policy, tasks: Sequence[Task], purpose: str, max_steps: int = 0
) -> list[Trajectory]:
    """Play tasks once without storing anything; `max_steps` 0 means the config's."""
    return list(
        rollouts(
            policy,
            [Job(task) for task in tasks],
            world.environments(config.environment.parallel),
            max_steps=max_steps or config.environment.max_steps,
            origin=Origin(0, purpose, config.identity()),
        )
    )


def _id(policy: Policy, job: Job, origin: Origin) -> str:
    return trajectory_id(job.task, policy.policy_id, policy.version, origin.purpose, job.attempt)


def _broken(lake: Lake, ids: set[str]) -> list[str]:
    if not ids:
        return []
    found = lake.sql(
        f"select trajectory_id, stop_reason from trajectories where stop_reason = '{StopReason.INFRASTRUCTURE}'"
    )
    return [one for one in found["trajectory_id"].to_pylist() if one in ids]
