"""Curation beside its peers on the same trajectories, one JSON line a measurement.

    python benchmarks/curation.py [--trajectories 5000 20000] [--steps 40]

`flywheel`: outcome, process, integrity, exact and near duplicates, segments and routing, from the lake into the lake.
`pandas`: outcome, process, integrity, duplicates (datasketch's MinHash and LSH) and routes over JSON lines, in chunks,
into JSON lines. `minhash`: signatures and pairs of the same sets of words, ours and datasketch alone. Each runs in a
process of its own; peak memory is that of the largest process, seconds are wall clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH
from made_up import trajectories

from flywheel.arrow import batched
from flywheel.config.curate import VerifierConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.near_duplicates import near_duplicates
from flywheel.filters.batch import read_batch
from flywheel.filters.curate import curate
from flywheel.filters.fingerprints import fingerprints
from flywheel.filters.verifiers.checks import CHECKER

THRESHOLD = 0.95
PIPELINE = (
    VerifierConfig(name="outcome"),
    VerifierConfig(name="process", arguments={"max_detour": 0.0}, gate=False),
    VerifierConfig(name="integrity"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(measured(given.part, given.folder)), flush=True)
        return
    for count in given.trajectories:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, count, given.steps)
            found: dict[str, dict[str, Any]] = {}
            for part in PARTS:
                call = [sys.executable, __file__, "--part", part, "--folder", name]
                found[part] = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
                print(
                    json.dumps({"trajectories": count, "steps": given.steps, "what": part, **found[part]}), flush=True
                )
            print(
                json.dumps(
                    {
                        "trajectories": count,
                        "pandas / flywheel": round(found["pandas"]["seconds"] / found["flywheel"]["seconds"], 2),
                        "datasketch / ours": round(
                            found["datasketch alone"]["seconds"] / found["minhash"]["seconds"], 2
                        ),
                    }
                ),
                flush=True,
            )


def prepare(folder: Path, count: int, steps: int) -> None:
    """The same episodes as a lake and as JSON lines."""
    with Lake(folder / "lake", create=True) as lake, (folder / "episodes.jsonl").open("w") as file:
        for batch in batched(trajectories(count, steps), 256):
            lake.append(list(batch), "made up")
            file.writelines(json.dumps(asdict(one)) + "\n" for one in batch)


def measured(part: str, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    told = PARTS[part](folder)
    seconds = time.perf_counter() - began
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": round(seconds, 2), "peak_mb": round(max(peaks) / 1024), **told}


def config(folder: Path) -> Config:
    whole = Config(name="curation", data_dir=folder / "lake")
    return whole.model_copy(
        update={
            "environment": whole.environment.model_copy(update={"name": "made-up", "parameters": {}}),
            "curate": whole.curate.model_copy(update={"verifiers": PIPELINE}),
        }
    )


def with_flywheel(folder: Path) -> dict[str, Any]:
    with Lake(folder / "lake") as lake:
        return {"routes": curate(config(folder), lake)}


def with_pandas(folder: Path) -> dict[str, Any]:
    """As one would write it over JSON lines: a frame of steps a chunk, group by episode."""
    seen: set[int] = set()
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    routes: dict[str, int] = {}
    with (folder / "routes.jsonl").open("w") as out:
        for chunk in pd.read_json(folder / "episodes.jsonl", lines=True, chunksize=512):
            steps = pd.json_normalize(chunk["steps"].explode().tolist())
            steps["owner"] = np.repeat(chunk["trajectory_id"].to_numpy(), chunk["length"].to_numpy())
            steps["offered"] = [
                action in offered for action, offered in zip(steps["action"], steps["valid_actions"], strict=True)
            ]
            steps["again"] = steps.duplicated(["owner", "state_key", "action"])
            steps["next_state"] = steps.groupby("owner")["state_key"].shift(-1).fillna("")
            steps["idle"] = steps["state_key"] == steps["next_state"]
            steps["touched"] = steps["action"].str.contains(CHECKER, regex=True)
            steps["paid_twice"] = steps["again"] & (steps["reward"] > 0)
            steps["stolen"] = ~steps["offered"] & (steps["reward"] > 0)
            by = steps.groupby("owner", sort=False)
            sums = by.agg(
                reward=("reward", "sum"),
                idle=("idle", "mean"),
                loops=("again", "mean"),
                valid=("offered", "mean"),
                touched=("touched", "any"),
                paid_twice=("paid_twice", "any"),
                stolen=("stolen", "any"),
                ended=("terminated", "last"),
                progress=("progress", "last"),
            ).loc[chunk["trajectory_id"]]
            ok = (
                np.isclose(sums["reward"], chunk["total_reward"])
                & ~sums["touched"].to_numpy()
                & ~sums["paid_twice"].to_numpy()
                & ~sums["stolen"].to_numpy()
                & (sums["ended"].to_numpy() == chunk["success"].to_numpy())
                & np.isclose(sums["progress"], chunk["score"])
            )
            for row, honest in zip(chunk.itertuples(), ok, strict=True):
                actions = [step["action"] for step in row.steps]
                key = hash((row.task_id, *actions))
                sketch = MinHash(num_perm=128)
                sketch.update_batch([text.encode() for text in words_of(row.steps)])
                repeats = key in seen or bool(index.query(sketch))
                seen.add(key)
                index.insert(row.trajectory_id, sketch)
                to = (
                    "quarantine" if not honest else "duplicate" if repeats else "supervised" if row.success else "other"
                )
                routes[to] = routes.get(to, 0) + 1
                out.write(json.dumps({"trajectory_id": row.trajectory_id, "route": to}) + "\n")
    return {"routes": routes}


def words_of(steps: list[dict[str, Any]]) -> list[str]:
    """The elements of an episode's set: consecutive actions, and what each met."""
    actions = ["", *(step["action"] for step in steps)]
    pairs = [f"{one}\n{other}" for one, other in pairwise(actions)]
    return [*pairs, *(f"{step['observation']}\n{step['action']}" for step in steps)]


def with_minhash(folder: Path) -> dict[str, Any]:
    """Signatures from Arrow, pairs by a SQL join."""
    with Lake(folder / "lake") as lake:
        ids = lake.by_commit(lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist())
        connection = lake.connect()
        for number, chunk in enumerate(batched(ids, 512)):
            connection.register("fresh", fingerprints(read_batch(lake, chunk)))
            verb = "create temp table prints as" if not number else "insert into prints"
            connection.execute(f"{verb} from fresh")
        return {"pairs": near_duplicates(connection, "prints", "prints", THRESHOLD).num_rows // 2}


def with_datasketch(folder: Path) -> dict[str, Any]:
    """The library by itself, as its documentation shows it, from JSON lines."""
    index, pairs = MinHashLSH(threshold=THRESHOLD, num_perm=128), 0
    with (folder / "episodes.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            sketch = MinHash(num_perm=128)
            for text in words_of(row["steps"]):
                sketch.update(text.encode())
            pairs += len(index.query(sketch))
            index.insert(row["trajectory_id"], sketch)
    return {"pairs": pairs}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "flywheel": with_flywheel,
    "pandas": with_pandas,
    "minhash": with_minhash,
    "datasketch alone": with_datasketch,
}

if __name__ == "__main__":
    main()
