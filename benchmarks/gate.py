"""How often the gate promotes a policy that is no better, and how often it finds one that is, beside comparing means.

python benchmarks/gate.py [--tasks 100] [--runs 4000] [--gains 0 0.05 0.1 0.15 0.2]

Tasks differ: each has its own chance of success under the champion (Beta, mean 0.4), in four horizons; the challenger
adds the gain on the logit that gives it that much on average. Both are played once a task, as in the gate. The naive
comparison promotes whoever has the higher mean, as systems without a test do; JSON on stdout.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binom

from flywheel.evaluation.gate import look_sizes
from flywheel.evaluation.statistics import rate
from flywheel.filters.batch import Bools, Floats

SLICES = 4
ALPHA = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--gains", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.15, 0.2])
    given = parser.parse_args()
    for gain in given.gains:
        ours_RK, theirs_RK = played(gain, given.runs, given.tasks)
        found = {
            "gate": gate(ours_RK, theirs_RK, 1),
            "gate, 3 looks": gate(ours_RK, theirs_RK, 3),
            "gate without slices": gate(ours_RK, theirs_RK, 1, slices=False),
            "higher mean": ours_RK.mean(1) > theirs_RK.mean(1),
        }
        row = {name: told(promoted_R) for name, promoted_R in found.items()}
        print(json.dumps({"gain": gain, "tasks": given.tasks, "runs": given.runs, **row}, ensure_ascii=False))


def played(gain: float, runs: int, tasks: int) -> tuple[Bools, Bools]:
    """Outcomes (runs, tasks) of challenger and champion."""
    chance = np.random.default_rng(0)
    theirs_RK = chance.beta(0.8, 1.2, (runs, tasks)).clip(1e-6, 1 - 1e-6)
    many = chance.beta(0.8, 1.2, 100_000).clip(1e-6, 1 - 1e-6)
    shift = brentq(lambda s: expit(logit(many) + s).mean() - many.mean() - gain, -1, 10)
    ours_RK = expit(logit(theirs_RK) + shift)
    return chance.random((runs, tasks)) < ours_RK, chance.random((runs, tasks)) < theirs_RK


def gate(ours_RK: Bools, theirs_RK: Bools, looks: int, *, slices: bool = True) -> Bools:
    """(R,): does it promote? The rule of `flywheel.evaluation.gate.decide`, for all runs at once; a test holds the two
    together."""
    promoted_R, open_R = np.zeros(len(ours_RK), bool), np.ones(len(ours_RK), bool)
    sizes = look_sizes(ours_RK.shape[1], looks)
    for size in sizes:
        level = ALPHA / len(sizes)
        wins_R, losses_R = counts(ours_RK[:, :size], theirs_RK[:, :size])
        p_R = np.minimum(1.0, 2 * binom.cdf(np.minimum(wins_R, losses_R), wins_R + losses_R, 0.5))
        better_R = (wins_R > losses_R) & (p_R <= level)
        for part in range(SLICES if slices else 0):
            won_R, lost_R = counts(ours_RK[:, part:size:SLICES], theirs_RK[:, part:size:SLICES])
            better_R &= ~((lost_R > won_R) & (binom.cdf(won_R, won_R + lost_R, 0.5) <= level))
        promoted_R |= open_R & better_R
        open_R &= ~better_R & ~((losses_R > wins_R) & (p_R <= level))
    return promoted_R


def counts(ours_RK: Bools, theirs_RK: Bools) -> tuple[Floats, Floats]:
    return (ours_RK & ~theirs_RK).sum(1), (~ours_RK & theirs_RK).sum(1)


def told(promoted_R: Bools) -> str:
    found = rate(int(promoted_R.sum()), len(promoted_R))
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f}–{100 * found.high:.1f})"


if __name__ == "__main__":
    main()
