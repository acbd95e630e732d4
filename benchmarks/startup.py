"""Start-up times as whole processes, JSON on stdout: python benchmarks/startup.py [DATA_DIR]."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
QUERY = "select policy, count(*), avg(verified) from trajectories group by all"


def seconds(command: list[str], runs: int = 5) -> dict[str, float]:
    """Minimum and median wall-clock seconds after one warm-up."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return {"min": round(min(times[1:]), 3), "median": round(statistics.median(times[1:]), 3)}


def main() -> None:
    data = sys.argv[1] if len(sys.argv) > 1 else "data/quickstart"
    figures = {
        "flywheel --help": seconds([FLYWHEEL, "--help"]),
        "python -c pass": seconds([sys.executable, "-c", "pass"]),
    }
    if (Path(data) / "catalog.sqlite").is_file():
        figures["flywheel sql"] = seconds([FLYWHEEL, "sql", QUERY, "--data-dir", data])
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
