"""The collect stage: play tasks with a policy and commit every finished episode to the lake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from flywheel.agents.policy import Policy
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.splits import assign
from flywheel.environments.catalog import opening_parameters
from flywheel.environments.protocol import World
from flywheel.rollouts.engine import Auditor, EnvironmentWorkers, Rollout, RolloutCallback, in_process
from flywheel.rollouts.environment_workers import EnvironmentWorker, remote_workers
from flywheel.rollouts.episode import Budget, Job, Origin, id_of
from flywheel.trajectory import StopReason, Task, Trajectory

COMMIT_EVERY = 32
COMMIT_STEPS = 4096
"""Long episodes are committed a few at a time, so that memory holds no more."""
COMMIT_SECONDS = 2.0
"""A finished episode waits no longer than this for others to be committed with it."""
INFRASTRUCTURE_RETRIES = 2
RETRY_STRIDE = 1000
"""Retries of broken episodes count their attempts from here, apart from planned attempts."""


@dataclass(frozen=True, slots=True)
class RolloutHooks:
    """What else takes part in rollouts: an auditor of agents' claims to be done, and callbacks that observe."""

    auditor: Auditor | None = None
    callbacks: Sequence[RolloutCallback] = ()
    enough: Callable[[], bool] | None = None
    """Asked before each episode from the rollouts' thread: True begins no more of them; those that run end."""


NO_HOOKS = RolloutHooks()


def make_workers(config: Config, world: World) -> EnvironmentWorkers:
    """Workers as a config wants them: in worker processes, or in this one."""
    settings = config.environment
    if not settings.workers:
        return in_process(world, settings.parallel)

    def crew() -> AbstractAsyncContextManager[Sequence[EnvironmentWorker]]:
        return remote_workers(
            settings.name,
            opening_parameters(config),
            environments=settings.parallel,
            processes=settings.workers,
            timeout=settings.step_timeout,
        )

    return crew


def play(
    config: Config,
    lake: Lake,
    world: World,
    policy: Policy,
    jobs: Sequence[Job],
    origin: Origin,
    progress: Callable[[int], None] = lambda done: None,
    hooks: RolloutHooks = NO_HOOKS,
) -> list[str]:
    """Play what the lake does not hold yet; the ids of all the jobs' trajectories, in order.

    The tasks' splits are recorded before the first of them is played; raises `ContaminationError` if they were decided
    otherwise. An episode that the infrastructure broke is committed as such, and its task is tried again under a new
    attempt.
    """
    assign(lake, [job.task for job in jobs])
    start = partial(
        Rollout,
        workers=make_workers(config, world),
        budget=Budget.of(config.environment),
        origin=origin,
        auditor=hooks.auditor,
        callbacks=hooks.callbacks,
    )
    ids: dict[str, Job] = {}
    waiting = list(jobs)
    for retry in range(1 + INFRASTRUCTURE_RETRIES):
        named = {id_of(job, policy, origin): job for job in waiting}
        ids |= named
        known = lake.known_ids(list(named))
        progress(len(known))
        again = [named[trajectory_id] for trajectory_id in broken(lake, known)]
        rollout = start(
            policy, _dealt([job for trajectory_id, job in named.items() if trajectory_id not in known], hooks)
        )
        for batch in rollout.batches(COMMIT_EVERY, COMMIT_STEPS, COMMIT_SECONDS):
            lake.append(batch, f"{origin.purpose} {policy.name} iteration {origin.iteration}")
            progress(len(batch))
            again += [
                named[trajectory.trajectory_id]
                for trajectory in batch
                if trajectory.stop_reason is StopReason.INFRASTRUCTURE
            ]
        if not again or retry == INFRASTRUCTURE_RETRIES:
            break
        waiting = [Job(job.task, job.attempt + RETRY_STRIDE) for job in again]
    return list(ids)


def _dealt(jobs: Sequence[Job], hooks: RolloutHooks) -> Iterable[Job]:
    if hooks.enough is None:
        return jobs
    enough = hooks.enough
    return takewhile(lambda _: not enough(), jobs)


def rehearse(
    config: Config, world: World, policy: Policy, tasks: Sequence[Task], purpose: str, max_steps: int = 0
) -> list[Trajectory]:
    """Play tasks once without storing anything; `max_steps` 0 means the config's."""
    budget = Budget(max_steps) if max_steps else Budget.of(config.environment)
    origin = Origin(0, purpose, config.identity())
    workers = make_workers(config, world)
    return list(Rollout(policy, [Job(task) for task in tasks], workers, budget=budget, origin=origin))


def broken(lake: Lake, ids: Iterable[str]) -> list[str]:
    """Those of the ids whose episodes the infrastructure broke."""
    wanted = set(ids)
    if not wanted:
        return []
    rows = lake.sql(
        f"select trajectory_id, stop_reason from trajectories where stop_reason = '{StopReason.INFRASTRUCTURE}'"
    )
    return [trajectory_id for trajectory_id in rows["trajectory_id"].to_pylist() if trajectory_id in wanted]
