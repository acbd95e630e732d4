"""How much of an environment's own speed is left when many of its episodes are played at once.

    python benchmarks/environments.py examples/desk/desk.toml configs/miniwob.toml

For each config the expert plays the same tasks twice in this process: in a bare loop, one episode after the other, and
through the rollout engine, `--concurrent` at once. Steps a second of both, and their ratio. Nothing is stored.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from flywheel.agents.policy import Policy, Turn
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.capabilities import AdvisesLive
from flywheel.environments.catalog import open_configured
from flywheel.environments.protocol import World
from flywheel.policies.factory import make_policy
from flywheel.rollouts.engine import Rollout
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.rollouts.play import make_workers
from flywheel.rollouts.tasks import task_source
from flywheel.trajectory import Split, Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--concurrent", type=int, default=32)
    given = parser.parse_args()
    for path in given.configs:
        with tempfile.TemporaryDirectory() as folder:
            config = load(path, [f"data_dir={folder}", f"environment.parallel={given.concurrent}"])
            with Lake.of(config, create=True) as lake, open_configured(config) as world:
                tasks = task_source(config, world).draw(Split.TRAIN, 0, given.episodes)
                expert = make_policy(config, lake, world, "expert")
                for environment in world.environments(given.concurrent):
                    environment.reset(tasks[0])  # a browser's pages are opened once
                alone, together = bare(config, world, expert, tasks), many(config, world, expert, tasks)
        row = {"config": str(path), "episodes": len(tasks), "bare": round(alone, 1), "at once": round(together, 1)}
        print(json.dumps({**row, "at once / bare": round(together / alone, 2)}), flush=True)


def bare(config: Config, world: World, expert: Policy, tasks: Sequence[Task]) -> float:
    """Steps a second of one episode after the other."""
    steps, began = 0, time.perf_counter()
    environment = world.environments(1)[0]
    for task in tasks:
        seen = environment.reset(task)
        expert.begin(0, task, 0)
        for _ in range(config.environment.max_steps):
            advice = environment.advise() if isinstance(environment, AdvisesLive) else None
            (decision,) = expert.act([Turn(0, seen, advice=advice)])
            if decision.action is None:
                break
            transition = environment.step(decision.action)
            steps, seen = steps + 1, transition.observation
            if transition.terminated:
                break
    return steps / (time.perf_counter() - began)


def many(config: Config, world: World, expert: Policy, tasks: Sequence[Task]) -> float:
    """Steps a second of the engine."""
    workers, budget = make_workers(config, world), Budget.of(config.environment)
    rollout = Rollout(expert, [Job(task) for task in tasks], workers, budget=budget, origin=Origin(0, "benchmark", ""))
    for _ in rollout:
        pass
    return rollout.clock.steps / rollout.clock.wall


if __name__ == "__main__":
    main()
