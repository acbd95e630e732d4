"""What orchestration costs: the same turns through Prefect and as plain function calls, each in a process of its own.

    python benchmarks/orchestration.py [--config configs/quickstart.toml] [--set KEY=VALUE …] [--runs 1]

Plain: collect, curate, evaluate, distill, gate, report, called one after the other. Prefect: `flywheel run`, which
checks the settings, starts a server with an empty database, and runs the same functions as tasks. Both in fresh data
directories, taking turns. `in_turn` is what a turn takes beyond its stages, as a share of it.
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
from flywheel.config import load
from flywheel.datasets.lake import Lake
from flywheel.datasets.retention import tend
from flywheel.distill.collection import collect
from flywheel.distill.evaluation import evaluate, gate
from flywheel.distill.iterations import begin, finish
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
    students = [distill(config, lake, kind, number) for kind in ("hierarchical", "flat")]
    decision = gate(config, lake, students[0].policy_id, iteration.champion_id, number)
    rates += [evaluate(config, lake, one.policy_id, Split.TEST, number) for one in students]
    finish(lake, number, write_report(config, lake, number, rates, decision, {}))
"""
TURNS = """select iteration, finished_at - started_at as seconds, report->'seconds' as stages
           from iterations order by iteration"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    plain, through, shares = [], [], []
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory() as folder:
            sets = [*given.set, f"data_dir={folder}/plain"]
            plain.append(_timed([sys.executable, "-c", PLAIN, given.config, *sets]))
            sets = [part for one in (*given.set, f"data_dir={folder}/prefect") for part in ("--set", one)]
            through.append(_timed([FLYWHEEL, "run", given.config, "--json", *sets]))
            shares += _in_turn(Path(folder) / "prefect")
    print(
        json.dumps(
            {
                "plain_seconds": [round(one, 1) for one in plain],
                "prefect_seconds": [round(one, 1) for one in through],
                "overhead": round(statistics.median(through) / statistics.median(plain) - 1, 4),
                "in_turn": [round(one, 4) for one in shares],
            },
            indent=2,
        )
    )


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def _in_turn(data: Path) -> list[float]:
    """For each turn, the share of its wall-clock that no stage accounts for. The report's own stage is left out."""
    from flywheel.datasets.lake import Lake

    rows = Lake(data).sql(TURNS).to_pylist()
    return [1 - sum(json.loads(row["stages"]).values()) / row["seconds"] for row in rows]


if __name__ == "__main__":
    main()
