"""Who plays what in an iteration: teachers first, then the champion beside them, always on tasks of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice

from flywheel.collect.curriculum import choose, horizon, success_by_horizon
from flywheel.collect.play_parallel import play_parallel
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.splits import assign
from flywheel.environments.capabilities import KnowsSolutions
from flywheel.environments.catalog import open_configured
from flywheel.policies.factory import EXPERT, NOISY_EXPERT, TUTORED, make_policy
from flywheel.policies.registry import RANDOM
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import NO_HOOKS, RolloutHooks
from flywheel.rollouts.tasks import TaskSource, task_source
from flywheel.trajectory import TASK_COLUMNS, Split, Task, task_of


@dataclass(frozen=True, slots=True)
class Share:
    """One policy's part of a collection: training tasks [start, start + count)."""

    policy: str
    start: int
    count: int


def plan(config: Config, iteration: int, champion_id: str) -> list[Share]:
    """Divide an iteration's new training tasks. A champion that is no student yet collects nothing."""
    settings = config.collect
    first = 0 if iteration == 1 else settings.episodes + (iteration - 2) * settings.later_episodes
    total = settings.episodes if iteration == 1 else settings.later_episodes
    champion_episodes = 0 if iteration == 1 or champion_id == RANDOM else round(total * settings.champion_share)
    tutored = 0 if iteration == 1 or champion_id == RANDOM else round(total * settings.tutored_share)
    counts = divided(settings.teachers, total - champion_episodes - tutored)
    for name, count in ((TUTORED, tutored), (champion_id, champion_episodes)):
        counts[name] = counts.get(name, 0) + count
    shares = []
    for policy, count in counts.items():
        if count:
            shares.append(Share(policy, first, count))
            first += count
    return shares


def divided(proportions: Mapping[str, float], total: int) -> dict[str, int]:
    """A whole in parts of these proportions, none off by one or more."""
    ends = [round(total * part / sum(proportions.values())) for part in accumulate(proportions.values(), initial=0.0)]
    return {name: end - start for name, start, end in zip(proportions, ends[:-1], ends[1:], strict=True)}


def collect(
    config: Config,
    lake: Lake,
    iteration: int,
    champion_id: str,
    progress: Callable[[int], None] = lambda done: None,
    hooks: RolloutHooks = NO_HOOKS,
) -> dict[str, int]:
    """Collect an iteration's training episodes; what is in the lake already is not played again. Counts by policy."""
    counts: dict[str, int] = {}
    with open_configured(config) as world:
        tasks = task_source(config, world)
        if tasks.listed is not None:
            assign(lake, [task for split in Split for task in tasks.listed[split]])
        for name, jobs in jobs_of(config, lake, tasks, iteration, champion_id).items():
            policy = make_policy(config, lake, world, name, champion_id)
            origin = Origin(iteration, "collect", config.identity(), champion_id)
            counts[policy.name] = len(play_parallel(config, lake, world, policy, jobs, origin, progress, hooks))
    return counts


def jobs_of(config: Config, lake: Lake, tasks: TaskSource, iteration: int, champion_id: str) -> dict[str, list[Job]]:
    """Policy → its episodes. The champion gets those that it can learn most from, teachers the rest, in order.

    Only episodes of earlier iterations decide, so that a resumed iteration divides its tasks as before.
    """
    return _overlapping(_divided(config, lake, tasks, iteration, champion_id), config.collect.overlap)


def _overlapping(jobs: dict[str, list[Job]], share: float) -> dict[str, list[Job]]:
    """The noisy expert plays some of the expert's tasks instead of its own: a success and a failure of one task."""
    expert, noisy = jobs.get(EXPERT, []), jobs.get(NOISY_EXPERT, [])
    common = min(round(share * len(noisy)), len(expert))
    return {**jobs, NOISY_EXPERT: [*expert[:common], *noisy[common:]]} if common else jobs


def _divided(config: Config, lake: Lake, tasks: TaskSource, iteration: int, champion_id: str) -> dict[str, list[Job]]:
    shares, world = plan(config, iteration, champion_id), tasks.world
    by_horizon = config.collect.curriculum and shares and shares[-1].policy == champion_id
    if not (by_horizon and isinstance(world, KnowsSolutions)):
        jobs = tasks.training_jobs(shares[0].start, sum(share.count for share in shares)) if shares else []
        ends = accumulate((share.count for share in shares), initial=0)
        return {share.policy: jobs[start : start + share.count] for share, start in zip(shares, ends, strict=False)}
    jobs = tasks.training_jobs(shares[0].start, sum(share.count for share in shares))
    rates = success_by_horizon(world, _played(lake, champion_id, iteration))
    horizons = [horizon(world, job.task) for job in jobs]
    champion_jobs = choose(jobs, horizons, rates, shares[-1].count, config.seed)
    rest = iter([job for job in jobs if job not in champion_jobs])
    return {share.policy: list(islice(rest, share.count)) for share in shares[:-1]} | {champion_id: champion_jobs}


def _played(lake: Lake, policy_id: str, iteration: int) -> list[tuple[Task, bool]]:
    """What a policy played in training and at gates before an iteration, and whether it was verified."""
    rows = lake.sql(
        f"""select verified, {", ".join(TASK_COLUMNS)} from trajectories
            where ours and policy_id = '{policy_id}' and iteration < {iteration} and split <> 'test'
              and verified is not null and stop_reason <> 'infrastructure' order by trajectory_id"""
    ).to_pylist()
    return [(task_of(row), bool(row["verified"])) for row in rows]
