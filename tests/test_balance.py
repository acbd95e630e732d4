"""Balance and curriculum: long, rare, hard and new episodes teach more; the champion plays what it can learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.collect.curriculum import choose, success_by_horizon
from flywheel.collect.stage import jobs_of, plan
from flywheel.config.curate import BalanceConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.data.sample_weights import draw_weights
from flywheel.environments.protocol import World
from flywheel.filters.balance import effective_share, horizon_buckets, shares, weights
from flywheel.filters.curate import curate
from flywheel.policies.registry import RANDOM
from flywheel.rollouts.episode import Job
from flywheel.rollouts.tasks import task_source
from flywheel.trajectory import Split, Task, Trajectory

NOTHING = BalanceConfig(horizon=0, family=0, difficulty=0, novelty=0)


def weigh(settings: BalanceConfig, lengths: list[int], **changes: Any) -> np.ndarray[Any, Any]:
    count = len(lengths)
    plain: dict[str, Any] = {
        "families": ["kitchen"] * count,
        "success": np.zeros(count),
        "neighbours": np.zeros(count, np.int64),
    }
    return weights(settings, lengths=np.array(lengths), **{**plain, **changes})


def test_octaves() -> None:
    assert horizon_buckets(np.array([0, 1, 2, 3, 4, 7, 8, 63, 64])).tolist() == [0, 0, 1, 1, 2, 2, 3, 5, 6]
    assert shares(["a", "b", "a", "a"]).tolist() == [0.75, 0.25, 0.75, 0.75]


def test_full_exponents_level_the_horizons() -> None:
    """Nine short runs to one long: with exponent 1 each horizon is drawn as often as the other."""
    level = replace_config(NOTHING, horizon=1.0, max_weight=100)
    found = weigh(level, [4] * 9 + [64])
    assert found[:9].sum() == pytest.approx(found[9])
    half = weigh(replace_config(NOTHING, horizon=0.5, max_weight=100), [4] * 9 + [64])
    assert half[9] / half[0] == pytest.approx(3)


def test_each_aspect_leans_the_right_way() -> None:
    lengths = [8, 8, 8, 8]
    rare = weigh(replace_config(NOTHING, family=1.0), lengths, families=["a", "a", "a", "b"])
    assert rare[3] > rare[0]
    hard = weigh(replace_config(NOTHING, difficulty=1.0), lengths, success=np.array([0.9, 0.9, 0.9, 0.1]))
    assert hard[3] > hard[0]
    new = weigh(replace_config(NOTHING, novelty=1.0), lengths, neighbours=np.array([5, 5, 5, 0]))
    assert new[3] / new[0] == pytest.approx(min(6, new[3] / new[0]))
    assert new[3] > new[0]


def replace_config(settings: BalanceConfig, **changes: float) -> BalanceConfig:
    return settings.model_copy(update=changes)


rows = st.lists(
    st.tuples(st.integers(1, 200), st.sampled_from("ab"), st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=40
)
exponents = st.builds(
    BalanceConfig,
    horizon=st.floats(0, 1),
    family=st.floats(0, 1),
    difficulty=st.floats(0, 1),
    novelty=st.floats(0, 1),
    max_weight=st.floats(1, 5),
)


@given(rows, exponents)
def test_weights_keep_the_work_and_never_starve_or_blow_up(
    given_rows: list[tuple[int, str, float, int]], settings: BalanceConfig
) -> None:
    lengths, families, success, neighbours = (list(column) for column in zip(*given_rows, strict=True))
    found = weights(
        settings,
        lengths=np.array(lengths),
        families=families,
        success=np.array(success),
        neighbours=np.array(neighbours, np.int64),
    )
    assert (found > 0).all()
    assert (found * lengths).sum() == pytest.approx(sum(lengths))
    assert 0 < effective_share(found) <= 1 + 1e-9
    even = weigh(NOTHING, lengths)
    assert even == pytest.approx(np.ones(len(lengths)))


def test_the_lake_gives_the_columns(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(smoke, lake)
    ids = [trajectory.trajectory_id for trajectory in golden]
    found = draw_weights(lake, ids, smoke.balance, 1)
    assert list(found) == sorted(ids)
    assert sum(found[trajectory.trajectory_id] * trajectory.length for trajectory in golden) == pytest.approx(
        sum(trajectory.length for trajectory in golden)
    )
    assert draw_weights(lake, ids, NOTHING, 1) == pytest.approx(dict.fromkeys(sorted(ids), 1.0))


def made_up_jobs(count: int) -> list[Job]:
    return [Job(Task("made-up", "{}", Split.TRAIN, seed)) for seed in range(count)]


def test_uncertain_tasks_are_chosen_more_often_and_none_twice() -> None:
    """Horizon 3 is sure, 4 is even, 5 hopeless."""
    some = made_up_jobs(300)
    horizons = [3 + place % 3 for place in range(300)]
    chosen = choose(some, horizons, {3: 0.99, 4: 0.5, 5: 0.01}, 60, seed=0)
    assert len({job.task.seed for job in chosen}) == 60
    count = Counter(horizons[job.task.seed] for job in chosen)
    assert count[4] > 50
    assert choose(some, horizons, {3: 0.99, 4: 0.5, 5: 0.01}, 60, seed=0) == chosen
    assert choose(some, horizons, {3: 0.99, 4: 0.5, 5: 0.01}, 60, seed=1) != chosen
    assert choose(some, horizons, {}, 300, seed=0) == some


def test_rates_by_horizon_come_from_what_was_played(world: World, golden: list[Trajectory]) -> None:
    played = [(trajectory.task, place % 2 == 0) for place, trajectory in enumerate(golden)]
    found = success_by_horizon(world, played)
    assert all(0 < rate < 1 for rate in found.values())
    assert success_by_horizon(world, []) == {}


def test_an_iteration_divides_its_tasks_once_and_for_all(
    smoke: Config, lake: Lake, world: World, golden: list[Trajectory]
) -> None:
    """The champion's tasks are drawn from the iteration's own; teachers get the others; a resumed one divides alike."""
    champion = "flat-0123"
    early = [replace(trajectory, policy_id=champion, iteration=1) for trajectory in golden]
    lake.append(early, "the champion before")
    curate(smoke, lake)
    tasks = task_source(smoke, world)
    first = jobs_of(smoke, lake, tasks, 2, champion)
    counts = {share.policy: share.count for share in plan(smoke, 2, champion)}
    assert {name: len(some) for name, some in first.items()} == counts
    seeds = [job.task.seed for some in first.values() for job in some]
    new_tasks = world.tasks(Split.TRAIN, smoke.collect.episodes, smoke.collect.later_episodes)
    assert sorted(seeds) == sorted(task.seed for task in new_tasks)
    late = [replace(trajectory, trajectory_id=f"{trajectory.trajectory_id[:-1]}x", iteration=2) for trajectory in early]
    lake.append(late, "of this iteration, before a kill")
    assert jobs_of(smoke, lake, tasks, 2, champion) == first
    assert RANDOM not in jobs_of(smoke, lake, tasks, 2, RANDOM)
