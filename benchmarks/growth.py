"""The lake as it grows, JSON on stdout: more trajectories, and longer ones.

python benchmarks/growth.py [--trajectories 2000 20000 200000] [--lengths 100 500 5000]

Each size is a lake of its own, written in batches of 32 (long episodes: of at most 4096 steps) and then compacted;
`stream` is a process of its own, whose peak memory shows whether it grows with the lake.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lake import QUESTION, best, size
from made_up import trajectories

from flywheel.arrow import batched
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.compaction import compact
from flywheel.datasets.versions.versions import create

STREAM = """
import json, resource, sys, time
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.versions import find
from flywheel.datasets.versions.stream import DatasetStream
lake = Lake(sys.argv[1])
dataset = find(lake, "all")
began = time.perf_counter()
rows = sum(table.num_rows for table in DatasetStream(lake, dataset, shuffle=int(sys.argv[2])))
print(json.dumps({"rows": rows, "seconds": time.perf_counter() - began,
                  "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))
"""


def measure(folder: Path, count: int, steps: int) -> dict[str, Any]:
    lake, used, some = Lake(folder, create=True), 0.0, []
    for batch in batched(trajectories(count, steps), max(1, min(32, 4096 // steps))):
        began = time.process_time()
        lake.append(batch, "benchmark")
        used += time.process_time() - began
        if len(some) < 20:
            some.append(batch[0].trajectory_id)
    rows = count * steps
    found: dict[str, Any] = {
        "trajectories": count,
        "steps an episode": steps,
        "ingest, rows per CPU-second": round(rows / used),
        "bytes a step": round(size(folder) / rows),
        "files": len(list((folder / "parts").iterdir())),
        "success by task and policy, seconds": round(best(lambda: lake.sql(QUESTION)), 3),
        "one trajectory by id, milliseconds": _by_id(lake, some),
        "stream": _stream(lake, folder, steps),
    }
    began_at = time.perf_counter()
    compact(lake)
    return found | {
        "compaction, seconds": round(time.perf_counter() - began_at, 1),
        "then: success by task and policy, seconds": round(best(lambda: lake.sql(QUESTION)), 3),
        "then: one trajectory by id, milliseconds": _by_id(lake, some),
        "then: stream": _stream(lake, folder, steps),
        "peak MB of this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def _by_id(lake: Lake, ids: list[str]) -> float:
    return round(1000 * sum(best(lambda one=one: lake.trajectories([one])) for one in ids) / len(ids), 1)


def _stream(lake: Lake, folder: Path, steps: int) -> dict[str, Any]:
    create(lake, "all", "true")
    command = [sys.executable, "-c", STREAM, str(folder), str(max(8, 40_960 // steps))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"rows per second": round(found["rows"] / found["seconds"]), "peak MB": found["peak MB"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, nargs="*", default=[2_000, 20_000, 200_000])
    parser.add_argument("--lengths", type=int, nargs="*", default=[100, 500, 5_000])
    asked = parser.parse_args()
    sizes = [(count, 40) for count in asked.trajectories] + [(100_000 // steps, steps) for steps in asked.lengths]
    for count, steps in sizes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
            print(json.dumps(measure(Path(place) / "lake", count, steps), indent=2), flush=True)


if __name__ == "__main__":
    main()
