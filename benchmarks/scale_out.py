"""Throughput against workers on this machine: playing, verifying, training; and the model that extrapolates it.

    python benchmarks/scale_out.py --data-dir data/quickstart --policy champion [--workers 1 2] [--ray ADDRESS]

Playing: training tasks by the student, stored in a lake of their own, steps per second, by `environment.processes` and,
with an address, by actors of a Ray cluster. Verifying: the same episodes, by `curate.workers` (and Ray actors).
Training: a student of the lake's episodes, tokens per second, by processes of torchrun with one thread each. One thread
a process throughout; times include starting the processes, as in a turn.

The model is Amdahl's law, X(n) = n·X(1) / (1 + σ·(n − 1)), with σ fitted by least squares on what was measured: an
extrapolation, not a measurement, and only as good as the assumption that further machines add what further cores did.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.optimize import minimize_scalar

from flywheel.collect.play_parallel import play_parallel
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import canonical, open_world
from flywheel.filters.curate import curate
from flywheel.policies.factory import make_policy
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import NO_HOOKS
from flywheel.trajectory import Split

ROOT = Path(__file__).parents[1]
EXTRAPOLATED = (4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="a lake with a student")
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.toml"))
    parser.add_argument("--policy", default="champion")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--start", type=int, default=7000, help="first training task")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ray", default="", help="address of a cluster with as many cores")
    given = parser.parse_args()
    config = load(Path(given.config), [f"data_dir={given.data_dir}"])
    found: dict[str, Any] = {"cores": os.cpu_count(), "episodes": given.episodes, "policy": given.policy}
    places = {"processes": ""} | ({"ray actors": given.ray} if given.ray else {})
    for name, address in places.items():
        played, verified = {}, {}
        for workers in given.workers:
            played[workers], verified[workers] = _played(config, given, workers, address)
        found[f"playing, by {name}"] = _modelled(played, "steps/s")
        found[f"verifying, by {name}"] = _modelled(verified, "episodes/s")
    found["training, by processes"] = _modelled(
        {workers: _trained(config, given.config, workers) for workers in given.workers}, "tokens/s"
    )
    print(json.dumps(found, indent=2))


def _played(config: Config, given: argparse.Namespace, workers: int, address: str) -> tuple[float, float]:
    """Steps played and episodes verified per second."""
    source = Lake.of(config)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "policies").symlink_to(source.root.absolute() / "policies")
        _copy_registry(source, Path(folder))
        ours = config.model_copy(
            update={
                "data_dir": Path(folder),
                "environment": config.environment.model_copy(update={"processes": workers}),
                "curate": config.curate.model_copy(update={"workers": workers}),
                "cluster": config.cluster.model_copy(update={"ray": address, "actors": workers}),
            }
        )
        lake = Lake(folder)
        with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
            student = make_policy(ours, lake, world, given.policy)
            jobs = [Job(task) for task in world.tasks(Split.TRAIN, given.start, given.episodes)]
            origin = Origin(1, "collect", ours.identity())
            began = time.perf_counter()
            play_parallel(ours, lake, world, student, jobs, origin, lambda done: None, NO_HOOKS)
            took = time.perf_counter() - began
        steps = lake.sql("select sum(length)::double as n from trajectories").to_pylist()[0]["n"]
        began = time.perf_counter()
        curate(ours, lake)
        return steps / took, given.episodes / (time.perf_counter() - began)


def _copy_registry(source: Lake, folder: Path) -> None:
    """A lake without episodes that knows the same students and champions."""
    from sqlalchemy import insert, select

    from flywheel.datasets.lake.catalog import CHAMPION, POLICY

    with Lake(folder, create=True) as made, source.catalog.read() as reading, made.catalog.write() as writing:
        for table in (POLICY, CHAMPION):
            rows = [dict(row._mapping) for row in reading.execute(select(table))]
            if rows:
                writing.execute(insert(table), rows)


def _trained(config: Config, file: str, workers: int) -> float:
    """Tokens per second of a flat student, starting included."""
    source = Lake.of(config)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        subprocess.run(["cp", "-r", str(source.root), str(data)], check=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        command += ["-m", "flywheel", "distill", file, "--kind", "flat", "--json", "--set", f"data_dir={data}"]
        command += ["--where", "split = 'train' and route = 'supervised'", "--set", "train.batch_tokens=2048"]
        began = time.perf_counter()
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        took = time.perf_counter() - began
        told = json.loads(done.stdout)
        return float(told["flat_tokens"]) / took


def _modelled(measured: dict[int, float], unit: str) -> dict[str, Any]:
    sigma = fitted(list(measured), list(measured.values()))
    one = measured[min(measured)] / min(measured)
    return {
        "unit": unit,
        "measured": {str(n): round(value, 1) for n, value in measured.items()},
        "sigma": round(sigma, 3),
        "extrapolated": {str(n): round(amdahl(n, one, sigma), 1) for n in EXTRAPOLATED if n not in measured},
    }


def amdahl(workers: float, one: float, sigma: float) -> float:
    """Throughput of so many workers, of which one has `one` (Amdahl 1967)."""
    return workers * one / (1 + sigma * (workers - 1))


def fitted(workers: Sequence[int], throughput: Sequence[float]) -> float:
    """The serial share σ in [0, 1] that explains the measured throughputs best."""
    one = throughput[0] / workers[0]

    def squares(sigma: float) -> float:
        return sum((amdahl(n, one, sigma) / x - 1) ** 2 for n, x in zip(workers, throughput, strict=True))

    return float(minimize_scalar(squares, bounds=(0.0, 1.0), method="bounded").x)


if __name__ == "__main__":
    main()
