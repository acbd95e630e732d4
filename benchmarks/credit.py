"""Credit over a million steps, beside the recursion in plain Python and verl's own GAE, JSON on stdout.

python benchmarks/credit.py [--steps 1000000] [--longest 400] [--segment 8] [--runs 5]

Ragged episodes of 1 to `longest` steps with segments of about `segment` steps. Everyone gets the same numbers, in the
form that it likes best: flat arrays here, lists in plain Python, padded torch tensors for verl (if it is installed).
Results must agree before times are told; times are the best of the runs, plain Python's of one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from flywheel.distill.credit.advantages import gae, length_adaptive, returns
from flywheel.distill.credit.hierarchical import Critics, hae
from flywheel.distill.credit.methods import Episodes, credit, make_method
from flywheel.distill.credit.ragged import Runs
from flywheel.filters.batch import Floats

GAMMA, LAM = 0.99, 0.95


def best(work: Callable[[], Any], runs: int) -> tuple[float, Any]:
    times, found = [], None
    for _ in range(runs):
        began = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - began)
    return min(times), found


def plain_gae(rewards: list[list[float]], values: list[list[float]]) -> list[list[float]]:
    found = []
    for reward, value in zip(rewards, values, strict=True):
        ahead, after, own = 0.0, 0.0, [0.0] * len(reward)
        for step in range(len(reward) - 1, -1, -1):
            ahead = reward[step] + GAMMA * after - value[step] + GAMMA * LAM * ahead
            own[step], after = ahead, value[step]
        found.append(own)
    return found


def array_gae(reward_T: Floats, value_T: Floats, done_T: Any) -> Floats:
    """The usual loop of reinforcement-learning code: a step at a time over arrays."""
    found_T, ahead, after = np.zeros_like(reward_T), 0.0, 0.0
    for step in reversed(range(len(reward_T))):
        going = 1.0 - done_T[step]
        delta = reward_T[step] + GAMMA * after * going - value_T[step]
        found_T[step] = ahead = delta + GAMMA * LAM * going * ahead
        after = value_T[step]
    return found_T


def plain_hae(
    rewards: list[list[float]], values: list[list[float]], begins: list[list[bool]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Executor's and planner's advantages; the planner's critic says what the executor's does, and one more."""
    low, high = [], []
    for reward, value, begin in zip(rewards, values, begins, strict=True):
        own, plan = [0.0] * len(reward), []
        inside, ahead, after, beyond, earned, length = 0.0, 0.0, 0.0, 0.0, 0.0, 0
        for step in range(len(reward) - 1, -1, -1):
            inside = reward[step] + GAMMA * after - value[step] + GAMMA * LAM * inside
            own[step], after = inside, value[step]
            earned, length = reward[step] + GAMMA * earned, length + 1
            if begin[step]:
                reach = GAMMA**length
                ahead = earned + reach * beyond - (value[step] + 1) + reach * LAM * ahead
                plan.append(ahead)
                beyond = after = value[step] + 1
                inside, earned, length = 0.0, 0.0, 0
        low.append(own)
        high.append(plan[::-1])
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--longest", type=int, default=400)
    parser.add_argument("--segment", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    chance = np.random.default_rng(0)
    starts = [0]
    while starts[-1] < given.steps:
        starts.append(min(starts[-1] + int(chance.integers(1, given.longest + 1)), given.steps))
    runs = Runs(np.array(starts))
    reward_T, value_T = chance.normal(size=given.steps), chance.normal(size=given.steps)
    begins_T = chance.random(given.steps) < 1 / given.segment
    begins_T[runs.first_N] = True
    parts, none_N, lam_N = Runs.of(begins_T), np.zeros(len(runs)), np.full(len(runs), LAM)
    critics = Critics(value_T, value_T[parts.first_N] + 1, value_T, none_N)

    def split(array: Any) -> list[list[Any]]:
        return [part.tolist() for part in np.split(array, runs.first_N[1:])]

    rewards, values, begins = split(reward_T), split(value_T), split(begins_T)
    gae_seconds, gae_T = best(lambda: gae(reward_T, value_T, runs, GAMMA, lam_N, none_N), given.runs)
    hae_seconds, levels = best(lambda: hae(reward_T, runs, parts, critics, GAMMA, lam_N, lam_N), given.runs)
    plain_seconds, plain = best(lambda: plain_gae(rewards, values), 1)
    done_T = np.isin(np.arange(given.steps), runs.last_N)
    array_seconds, array_T = best(lambda: array_gae(reward_T, value_T, done_T), 1)
    plain_hae_seconds, plain_levels = best(lambda: plain_hae(rewards, values, begins), 1)
    assert np.allclose(gae_T, np.concatenate(plain))
    assert np.allclose(gae_T, array_T)
    assert np.allclose(levels.executor_T, np.concatenate(plain_levels[0]))
    assert np.allclose(levels.planner_K, np.concatenate(plain_levels[1]))
    adaptive = length_adaptive(runs.length_N, 1.0, 0.5, 1.0)
    seconds = {
        "gae": gae_seconds,
        "gae, length-adaptive, and returns": best(
            lambda: (gae(reward_T, value_T, runs, GAMMA, adaptive, none_N), returns(reward_T, runs, GAMMA, none_N)),
            given.runs,
        )[0],
        "hae": hae_seconds,
        **{
            f"{name}, Arrow to Arrow": best(lambda name=name: arrow(name, runs, reward_T, begins_T), given.runs)[0]
            for name in ("gae", "hae", "gigpo")
        },
        "gae in plain Python over arrays": array_seconds,
        "gae in plain Python over lists": plain_seconds,
        "hae in plain Python over lists": plain_hae_seconds,
    }
    ratios = {
        "gae against plain Python over arrays": array_seconds / gae_seconds,
        "gae against plain Python over lists": plain_seconds / gae_seconds,
        "hae against plain Python over lists": plain_hae_seconds / hae_seconds,
    }
    if peer := verl_gae(runs, reward_T, value_T, given.runs):
        seconds["verl gae"], found = peer
        ratios["gae against verl"] = seconds["verl gae"] / gae_seconds
        spread = (gae_T - gae_T.mean()) / gae_T.std()
        assert np.allclose(found, spread, atol=1e-3)
    print(
        json.dumps(
            {
                "steps": given.steps,
                "episodes": len(runs),
                "segments": len(parts),
                "seconds": {name: round(value, 4) for name, value in seconds.items()},
                "times as fast": {name: round(value, 1) for name, value in ratios.items()},
            },
            indent=2,
        )
    )


def arrow(name: str, runs: Runs, reward_T: Floats, begins_T: Any) -> pa.Table:
    """The same from a table of steps to a table of credits."""
    owner_T = runs.owner_T
    steps = pa.table(
        {
            "trajectory_id": pa.DictionaryArray.from_arrays(owner_T.astype(np.int32), IDS[: len(runs)]).cast(
                pa.string()
            ),
            "index": pa.array(np.arange(runs.steps) - runs.first_N[owner_T], pa.int32()),
            "task_id": pa.DictionaryArray.from_arrays((owner_T // 4).astype(np.int32), IDS[: len(runs)]).cast(
                pa.string()
            ),
            "state_key": pa.DictionaryArray.from_arrays((np.arange(runs.steps) % 997).astype(np.int32), IDS[:997]).cast(
                pa.string()
            ),
            "reward": reward_T,
            "progress": np.zeros(runs.steps),
            "terminated": np.isin(np.arange(runs.steps), runs.last_N),
            "begins": begins_T,
        }
    )
    return credit(name, make_method(name, {}), Episodes(steps))


IDS = pa.array([f"{number:032x}" for number in range(1_000_000)])


def verl_gae(runs: Runs, reward_T: Floats, value_T: Floats, repeats: int) -> tuple[float, Floats] | None:
    """(seconds, whitened advantages) of verl's compute_gae_advantage_return on padded tensors."""
    try:
        from verl.trainer.ppo.core_algos import compute_gae_advantage_return
    except ImportError:
        return None
    width = int(runs.length_N.max())
    mask = torch.zeros(len(runs), width)
    place = (torch.from_numpy(runs.owner_T), torch.from_numpy(np.arange(runs.steps) - runs.first_N[runs.owner_T]))
    mask[place] = 1.0
    reward, value = torch.zeros(len(runs), width), torch.zeros(len(runs), width)
    reward[place], value[place] = torch.from_numpy(reward_T).float(), torch.from_numpy(value_T).float()
    seconds, (found, _) = best(lambda: compute_gae_advantage_return(reward, value, mask, GAMMA, LAM), repeats)
    return seconds, found[place].double().numpy()


if __name__ == "__main__":
    main()
