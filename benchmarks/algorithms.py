"""Algorithms and hierarchy on one snapshot, over seeds: success by horizon, time, parameters.

    python benchmarks/algorithms.py --lake data/algorithms --seeds 3

Collects and curates once (configs/algorithms/bc.toml, seed 0), then distills every arm from that snapshot with
each seed, and plays the same held-out tasks. One JSON line an arm and seed, then for each arm its rate by the expert's
length and the paired difference to its control with an interval from a bootstrap over seeds and tasks. Stopped and
started again, it trains only what it had not finished.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flywheel.collect.stage import collect
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.evaluation.statistics import crossed_mean, rate
from flywheel.filters.curate import curate
from flywheel.policies.registry import RANDOM, policy_directory
from flywheel.policies.students import load_policy
from flywheel.rollouts.play import rehearse
from flywheel.trajectory import Split, Task

CONFIGS = Path(__file__).parents[1] / "configs" / "algorithms"
ARMS = {
    "flat bc": ("flat", "bc", ""),
    "flat awr": ("flat", "awr", "flat bc"),
    "flat kd": ("flat", "kd", "flat bc"),
    "flat dpo": ("flat", "dpo", "flat bc"),
    "flat ppo": ("flat", "ppo", "flat bc"),
    "flat grpo": ("flat", "grpo", "flat bc"),
    "flat bc, wide": ("flat", "wide", "flat bc"),
    "hierarchical bc": ("hierarchical", "bc", "flat bc, wide"),
    "hierarchical awr": ("hierarchical", "awr", "hierarchical bc"),
    "hierarchical kd": ("hierarchical", "kd", "hierarchical bc"),
    "hierarchical ppo": ("hierarchical", "ppo", "hierarchical bc"),
    "hierarchical grpo": ("hierarchical", "grpo", "hierarchical bc"),
}
"""Arm → kind, config, and the arm that it is compared with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--split", choices=["dev", "test"], default="test", help="dev: to choose settings by")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    base = settings_of("bc", 0, given)
    with (
        Lake.of(base, create=True) as lake,
        open_world(base.environment.name, canonical(base.environment.parameters)) as world,
    ):
        collect(base, lake, 1, RANDOM)
        curate(base, lake)
        tasks = world.tasks(Split(given.split), base.evaluate.test_start, base.evaluate.test_tasks)
        lengths = np.array([len(world.facts(task).gold_actions) for task in tasks])
        solved: dict[str, list[list[bool]]] = {arm: [] for arm in given.arms}
        for seed in range(given.seeds):
            for arm in given.arms:
                kind, name, _ = ARMS[arm]
                solved[arm].append(run(settings_of(name, seed, given), lake, world, arm, kind, tasks, seed))
    report(solved, lengths)


def settings_of(name: str, seed: int, given: argparse.Namespace) -> Config:
    """An arm's config with the environment of all."""
    own = [f"data_dir={given.lake}", f"seed={seed}", *given.set]
    base = load(CONFIGS / "bc.toml", own)
    arm = load(CONFIGS / f"{name}.toml", own)
    return base.model_copy(update={"train": arm.train, "student": arm.student})


def run(
    settings: Config, lake: Lake, world: World, arm: str, kind: str, tasks: Sequence[Task], seed: int
) -> list[bool]:
    """Distill an arm's student and play the tasks; which of them it solved."""
    began = time.perf_counter()
    card = distill(settings, lake, kind, 1)
    trained = time.perf_counter() - began
    student = load_policy(policy_directory(lake, card.policy_id))
    played = rehearse(settings, world, student, tasks, "evaluate")
    success = {trajectory.task_id: trajectory.success for trajectory in played}
    found = [success[task.task_id] for task in tasks]
    explained = {name: round(value, 3) for name, value in card.metrics.items() if name.endswith("explained_variance")}
    row = {"arm": arm, "seed": seed, "policy": card.policy_id, "solved": sum(found), "tasks": len(found)}
    row |= {"parameters": card.parameters, "trajectories": card.trajectories, **explained}
    print(json.dumps({**row, "train_seconds": round(trained)}), flush=True)
    return found


def report(solved: dict[str, list[list[bool]]], lengths: np.ndarray) -> None:
    """Rates by third of the expert's length, and differences to each arm's control."""
    cuts = np.quantile(lengths, [1 / 3, 2 / 3])
    bucket = np.searchsorted(cuts, lengths)
    names = [f"up to {cuts[0]:.0f} steps", f"to {cuts[1]:.0f}", "longer"]
    for arm, outcomes in solved.items():
        found_SK = np.array(outcomes, np.float64)
        row = {"arm": arm, "all": told(found_SK), **{names[b]: told(found_SK[:, bucket == b]) for b in range(3)}}
        if (control := ARMS[arm][2]) in solved:
            gain = crossed_mean(found_SK - np.array(solved[control], np.float64))
            row["against"] = control
            row["difference"] = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        print(json.dumps(row, ensure_ascii=False), flush=True)


def told(found_SK: np.ndarray) -> str:
    """A rate in percent with Wilson's interval over all seeds' tasks."""
    found = rate(int(found_SK.sum()), found_SK.size)
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


if __name__ == "__main__":
    main()
