"""Do the filters pay? Students of poisoned data, with and without them, over several seeds.

    python benchmarks/poisoned.py --seeds 3 --kind flat

A fifth of the claimed successes are planted cheats of every class that claims success, made of an expert's episodes
(--cheaters expert) or of aimless ones, by agents that cannot solve the task (--cheaters aimless). Arms: `filtered`
(the shipped pipeline routes), `unfiltered` (every claim teaches), `balanced` (filtered, and sampling weights of 0.5).
All arms see the same episodes, train with the same seed and play the same dev tasks; one JSON line an arm and seed,
then the paired differences with intervals from a bootstrap over seeds and tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flywheel.agents.policy import Policy
from flywheel.agents.scripted import Expert, RandomPolicy
from flywheel.arrow import routes_to_arrow, segments_to_arrow
from flywheel.config.curate import BalanceConfig
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.filters.batch import batch_of
from flywheel.filters.calibration.reward_hacks import REWARD_HACKS
from flywheel.filters.curate import curate
from flywheel.filters.segments import segments_of
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import load_policy
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Route, RouteTo, Split, Trajectory

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.toml"
KITCHEN = [
    "environment.parameters={ numLocations = 2, numIngredients = 2, numDistractorItems = 2, includeDoors = 0, "
    "limitInventorySize = 0 }",
    "environment.max_steps=40",
    "train.epochs={ planner = 6, executor = 3, flat = 5 }",
]
POISON = 0.2
ARMS = ["filtered", "unfiltered", "balanced"]
DRAWS = 10_000
LEANING = BalanceConfig(horizon=0.5, family=0.5, difficulty=0.5, novelty=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kind", choices=["flat", "hierarchical"], default="flat")
    parser.add_argument("--cheaters", choices=["expert", "aimless"], default="aimless")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--tasks", type=int, default=200)
    given = parser.parse_args()
    arms: dict[str, list[list[bool]]] = {arm: [] for arm in given.arms}
    for seed in range(given.seeds):
        for arm, outcomes in arms.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                settings = load(QUICKSTART, [*KITCHEN, f"data_dir={folder}", f"seed={seed}"])
                if arm == "balanced":
                    settings = settings.model_copy(update={"balance": LEANING})
                solved, long, taught = run(settings, arm, given)
                outcomes.append(solved)
                far = [one for one, is_long in zip(solved, long, strict=True) if is_long]
                row = {
                    "kind": given.kind,
                    "cheaters": given.cheaters,
                    "arm": arm,
                    "seed": seed,
                    "taught": taught,
                    "solved": sum(solved),
                    "tasks": len(solved),
                }
                row |= {"solved_long": sum(far), "long_tasks": len(far)}
                print(json.dumps({**row, "seconds": round(time.perf_counter() - began)}), flush=True)
    for arm in arms.keys() - {"filtered"}:
        print(json.dumps({"filtered against": arm, **paired(arms["filtered"], arms[arm])}), flush=True)


def run(settings: Config, arm: str, given: argparse.Namespace) -> tuple[list[bool], list[bool], int]:
    """(which dev tasks the student solves, which of them are long, how many episodes taught it).

    A task is long if its solution has more steps than that of the median task.
    """
    with (
        Lake.of(settings, create=True) as lake,
        open_world(settings.environment.name, canonical(settings.environment.parameters)) as world,
    ):
        start = settings.seed * 1000
        golden = play(settings, world, Expert(world), Split.TRAIN, start, given.episodes)
        count = round(POISON * given.episodes)
        aimless = RandomPolicy(seed=settings.seed)
        base = golden if given.cheaters == "expert" else play(settings, world, aimless, Split.TRAIN, start, count + 1)
        poisoned = poison(golden, base, count, world)
        lake.append(poisoned, "poisoned")
        if arm == "unfiltered":
            trust(lake, poisoned)
        else:
            curate(settings, lake)
        card = distill(settings, lake, given.kind, 1)
        student = load_policy(policy_directory(lake, card.policy_id))
        played = sorted(
            play(settings, world, student, Split.DEV, 0, given.tasks), key=lambda trajectory: trajectory.seed
        )
        steps = np.array([len(world.facts(job.task).gold_actions) for job in played])
    return [trajectory.success for trajectory in played], (steps > np.median(steps)).tolist(), card.trajectories


def play(settings: Config, world: World, policy: Policy, split: Split, start: int, count: int) -> list[Trajectory]:
    jobs, origin = [Job(task) for task in world.tasks(split, start, count)], Origin(1, "collect", settings.identity())
    workers = in_process(world, settings.environment.parallel)
    return list(Rollout(policy, jobs, workers, budget=Budget.of(settings.environment), origin=origin))


def poison(golden: Sequence[Trajectory], base: Sequence[Trajectory], count: int, world: World) -> list[Trajectory]:
    """Golden episodes, the first `count` of them replaced by cheats made of `base`, each class in turn."""
    ordered, cheated = (sorted(some, key=lambda trajectory: trajectory.seed) for some in (golden, base))
    facts = [world.facts(job.task) for job in cheated[:count]]
    claims = [
        plant
        for name, plant in REWARD_HACKS.items()
        if name != "swapped seed" and plant(cheated[0], cheated[1], facts[0]).success
    ]
    cheats = [claims[place % len(claims)](cheated[place], cheated[place + 1], facts[place]) for place in range(count)]
    return [*cheats, *ordered[count:]]


def trust(lake: Lake, episodes: Sequence[Trajectory]) -> None:
    """Let every claimed success teach."""
    parts = [part for row in segments_of(batch_of(episodes)) for part in row]
    lake.append_facts("segments", segments_to_arrow(parts), "segments", key=("source",))
    routes = [
        Route(episode.trajectory_id, RouteTo.SUPERVISED, True, "taken at its word", "none")
        for episode in episodes
        if episode.success
    ]
    lake.append_facts("routes", routes_to_arrow(routes), "routes", key=("source",))


def paired(ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Mean difference in success with a 95 % percentile interval; seeds and tasks are drawn anew."""
    difference_SK = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    chance = np.random.default_rng(0)
    seeds, tasks = difference_SK.shape
    draws = [
        difference_SK[chance.integers(0, seeds, seeds)][:, chance.integers(0, tasks, tasks)].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"difference": float(difference_SK.mean()), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
