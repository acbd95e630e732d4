"""What orchestration costs: the same turns through Prefect and as plain function calls, each in a process of its own.

    python benchmarks/orchestration.py [--config configs/quickstart.toml] [--set KEY=VALUE …] [--runs 1]

Plain: collect, curate, evaluate, distill, gate, report, called one after the other. Prefect: `flywheel run`, which
checks the settings, starts a server with an empty database, and runs the same functions as tasks. Both in fresh data
directories, taking turns. `in_turns`: what turns take beyond their stages, as a share of them; `all`: with what
Prefect's process takes outside of them more than the plain one (checks, server, clients).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
PLAIN = """
import sys
from pathlib import Path
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.retention import tend
from flywheel.collect.stage import collect
from flywheel.evaluation.evaluate import evaluate
from flywheel.evaluation.promotion import gate, opponent_of
from flywheel.flows.iterations import begin, finish
from flywheel.distill.stage import distill
from flywheel.filters.curate import curate
from flywheel.flows.report import write_report
from flywheel.trajectory import Split
config = load(Path(sys.argv[1]), sys.argv[2:])
for number in range(1, config.iterations + 1):
    lake = Lake.of(config, create=True)
    iteration = begin(config, lake, number)
    collect(config, lake, number, iteration.champion_id)
    curate(config, lake)
    tend(lake, config.lake.retire)
    rates = [evaluate(config, lake, name, Split.TEST, number) for name in config.collect.teachers]
    students = [distill(config, lake, kind, number).policy_id for kind in ("flat", "hierarchical")]
    decisions = gate(config, lake, students, opponent_of(config, iteration.champion_id), number)
    rates += [evaluate(config, lake, name, Split.TEST, number) for name in students]
    finish(lake, number, write_report(config, lake, number, rates, dict(zip(students, decisions)), {}))
"""
TURNS = """select finished_at - started_at as seconds, report->'seconds' as stages from iterations order by iteration"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"plain": [], "prefect": []}
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory() as folder:
            sets = [*given.set, f"data_dir={folder}/plain"]
            found["plain"].append(_timed([sys.executable, "-c", PLAIN, given.config, *sets], Path(folder) / "plain"))
            sets = [part for one in (*given.set, f"data_dir={folder}/prefect") for part in ("--set", one)]
            command = [FLYWHEEL, "run", given.config, "--json", *sets]
            found["prefect"].append(_timed(command, Path(folder) / "prefect"))
    outside = {name: statistics.median(run["outside"] for run in runs) for name, runs in found.items()}
    turns = statistics.median(one["turns"] for one in found["prefect"])
    between = statistics.median(one["between"] for one in found["prefect"])
    overhead = (outside["prefect"] - outside["plain"] + between) / turns
    print(json.dumps({**found, "in_turns": round(between / turns, 4), "all": round(overhead, 4)}, indent=2))


def _timed(command: list[str], data: Path) -> dict[str, float]:
    """Seconds of the whole process, of its turns, of what is outside of them, and of what lies between their stages."""
    from flywheel.datasets.lake.lake import Lake

    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = time.perf_counter() - began
    rows = Lake(data).sql(TURNS).to_pylist()
    turns = sum(row["seconds"] for row in rows)
    stages = sum(sum(json.loads(row["stages"]).values()) for row in rows)
    told = {"whole": whole, "turns": turns, "outside": whole - turns, "between": turns - stages if stages else 0.0}
    return {name: round(value, 2) for name, value in told.items()}


if __name__ == "__main__":
    main()
