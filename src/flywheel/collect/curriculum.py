"""Curriculum: which tasks to play next, from where success is neither certain nor hopeless.

A task's chance of success is read off its horizon, which the privileged facts tell; p (1 - p) is how much an episode
can teach (Tzannetos et al. 2023, arXiv 2304.12877: tasks of intermediate success).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flywheel.environments.capabilities import KnowsSolutions
from flywheel.filters.balance import horizon_buckets
from flywheel.rollouts.episode import Job
from flywheel.trajectory import Task, digest


def horizon(world: KnowsSolutions, task: Task) -> int:
    """Octave of the length of the task's known solution."""
    return int(horizon_buckets(np.array([len(world.facts(task).gold_actions)]))[0])


def success_by_horizon(world: KnowsSolutions, played: Iterable[tuple[Task, bool]]) -> dict[int, float]:
    """Horizon → rate of success of what a policy played, Laplace's estimate (k + 1) / (n + 2)."""
    tried: Counter[int] = Counter()
    solved: Counter[int] = Counter()
    for task, success in played:
        bucket = horizon(world, task)
        tried[bucket] += 1
        solved[bucket] += success
    return {bucket: (solved[bucket] + 1) / (tried[bucket] + 2) for bucket in tried}


def choose(
    jobs: Sequence[Job], horizons: Sequence[int], rates: Mapping[int, float], count: int, seed: int
) -> list[Job]:
    """Draw episodes without replacement by p (1 - p), a horizon never tried counting as even odds.

    Efraimidis & Spirakis 2006: the largest u^(1 / weight) are a weighted sample. The same for the same seed.
    """
    keys = []
    for job, bucket in zip(jobs, horizons, strict=True):
        chance = rates.get(bucket, 0.5)
        drawn = digest("curriculum", seed, job.task.task_id, job.attempt)
        draw = (int(drawn, 16) + 0.5) / 2**64
        keys.append(np.log(draw) / max(chance * (1 - chance), 1e-9))
    chosen = sorted(np.argsort(keys)[::-1][:count].tolist())
    return [jobs[place] for place in chosen]
