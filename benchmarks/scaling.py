"""What test-time scaling gains and costs: auditors, more attempts and more steps, on students of several seeds.

    python benchmarks/scaling.py --data-dir data/scaling --seeds 3 --split test

Each seed collects, curates and distills anew by configs/declared.toml, then every means is measured against the plain
evaluation of the same policy on the same tasks. Prints JSON: per seed, and over seeds. Each seed has its
own interval. What the lakes hold is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flywheel.collect.stage import collect
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.evaluation import test_time
from flywheel.evaluation.test_time import Gain
from flywheel.filters.curate import curate
from flywheel.flows.iterations import begin
from flywheel.policies.registry import crown
from flywheel.trajectory import Split

ROOT = Path(__file__).parents[1]
Measure = Callable[[Config, Lake, str, Split], Gain]
MEASURES: dict[str, Measure] = {
    "auditor: value": lambda config, lake, name, split: test_time.audited(config, lake, name, split, 1, "value"),
    "best of 4: value": lambda config, lake, name, split: test_time.best_of(
        config, lake, name, split, 1, 4, "value", 0.5
    ),
    "best of 4: privileged": lambda config, lake, name, split: test_time.best_of(
        config, lake, name, split, 1, 4, "privileged", 0.5
    ),
    "120 steps": lambda config, lake, name, split: test_time.longer(config, lake, name, split, 1, 120),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", type=Split, default=Split.TEST, choices=[Split.DEV, Split.TEST])
    given = parser.parse_args()
    gains: dict[str, list[dict[str, Any]]] = {}
    for seed in range(given.seeds):
        for name, gain in measured(given.data_dir / f"seed-{seed}", seed, given.split).items():
            gains.setdefault(name, []).append(gain.to_dict())
    print(json.dumps({"by seed": gains, "over seeds": {name: over(rows) for name, rows in gains.items()}}, indent=2))


def measured(folder: Path, seed: int, split: Split) -> dict[str, Gain]:
    """Every means on the students of one seed, and an auditor on the noisy expert."""
    config = load(ROOT / "configs" / "declared.toml", [f"data_dir={folder}", f"seed={seed}"])
    lake = Lake.of(config, create=True)
    turn = begin(config, lake, 1)
    collect(config, lake, 1, turn.champion_id)
    curate(config, lake)
    students = {kind: distill(config, lake, kind, 1).policy_id for kind in ("hierarchical", "flat")}
    crown(lake, students["hierarchical"], "the only one")
    found = {
        f"{kind}, {what}": measure(config, lake, policy_id, split)
        for kind, policy_id in students.items()
        for what, measure in MEASURES.items()
    }
    found["noisy expert, auditor: value"] = MEASURES["auditor: value"](config, lake, "noisy_expert", split)
    return found


def over(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the spread of the gain between them."""
    gains = [row["gain"]["value"] for row in rows]
    return {
        "plain": float(np.mean([row["plain"]["value"] for row in rows])),
        "scaled": float(np.mean([row["scaled"]["value"] for row in rows])),
        "gain": float(np.mean(gains)),
        "gains": gains,
        "cost ratio": float(np.mean([row["cost_ratio"] for row in rows])),
    }


if __name__ == "__main__":
    main()
