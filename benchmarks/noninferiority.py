"""How often the gate's margin promotes a policy that is worse by the margin, and how often one that is as good.

python benchmarks/noninferiority.py [--tasks 50 100 150 300] [--margins 0.05 0.1]

Exact, by summing over every outcome of so many tasks; `differ` is the share of tasks that one of the two policies alone
solves. Beside it the comparison of observed rates, which promotes whatever seems to be within the margin. JSON on
stdout, a line a case.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.special import gammaln, xlogy

from flywheel.evaluation.noninferiority import NUISANCES, outcomes, score
from flywheel.filters.batch import Bools, Floats

LEVEL = 0.025


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[50, 100, 150, 300])
    parser.add_argument("--margins", type=float, nargs="+", default=[0.05, 0.1])
    given = parser.parse_args()
    for tasks in given.tasks:
        win_C, loss_C = outcomes(tasks)
        for margin in given.margins:
            promoted_C = promoted(win_C, loss_C, tasks, margin)
            seems_C = (win_C - loss_C) / tasks > -margin
            for differ in (0.1, 0.3, 0.5):
                row: dict[str, float] = {"tasks": tasks, "margin": margin, "differ": differ}
                for name, gain in (("worse by the margin", -margin), ("as good", 0.0)):
                    chance_C = chances(win_C, loss_C, tasks, (differ + gain) / 2, (differ - gain) / 2)
                    row[f"{name}, gate"] = round(float(chance_C[promoted_C].sum()), 4)
                    row[f"{name}, rates"] = round(float(chance_C[seems_C].sum()), 4)
                print(json.dumps(row))


def promoted(win_C: Floats, loss_C: Floats, tasks: int, margin: float) -> Bools:
    """(C,): is the p-value at most the level? That of `noninferiority_p_value`, for every outcome at once: a test holds
    the two together."""
    score_C = score(win_C, loss_C, tasks, margin)
    order_C = np.argsort(-score_C, kind="stable")
    worst_C = np.zeros(len(score_C))
    for loss_rate in np.linspace(margin, (1 + margin) / 2, NUISANCES):
        chance_C = chances(win_C, loss_C, tasks, loss_rate - margin, loss_rate)
        worst_C = np.maximum(worst_C, np.cumsum(chance_C[order_C]))
    value_C = np.empty_like(worst_C)
    ends_C = np.searchsorted(-score_C[order_C], -score_C[order_C] + 1e-9, side="right") - 1
    value_C[order_C] = worst_C[ends_C]
    level_C: Bools = value_C <= LEVEL
    return level_C


def chances(win_C: Floats, loss_C: Floats, tasks: int, win_rate: float, loss_rate: float) -> Floats:
    """(C,): the trinomial chance of each outcome."""
    ties_C = tasks - win_C - loss_C
    ways_C = gammaln(tasks + 1) - gammaln(win_C + 1) - gammaln(loss_C + 1) - gammaln(ties_C + 1)
    tie_rate = max(0.0, 1 - win_rate - loss_rate)
    chance_C: Floats = np.exp(ways_C + xlogy(win_C, win_rate) + xlogy(loss_C, loss_rate) + xlogy(ties_C, tie_rate))
    return chance_C


if __name__ == "__main__":
    main()
