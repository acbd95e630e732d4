"""Diagnostics of a credit run: groups without contrast, shared states, and credit by position in the episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel.distill.credit.methods import Episodes
from flywheel.filters.batch import Floats, Ints, codes

DECILES = 10


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """`deciles`: by level, the share of all |advantage| in each tenth of the episodes, the first tenth first.

    `silent_groups`: share of tasks whose trajectories all have one return, or are alone. `shared_states`: share of
    steps whose state another trajectory of the task met, too.
    """

    steps: int
    tasks: int
    silent_groups: float
    shared_states: float
    deciles: dict[str, list[float]]


def diagnose(episodes: Episodes, credits: pa.Table) -> Diagnostics:
    """Look at one table of credits."""
    runs = episodes.runs
    earned_N = np.bincount(runs.owner_T, episodes.column("reward"), len(runs))
    group_N = episodes.group_N
    groups = int(group_N.max()) + 1
    highest, lowest = np.full(groups, -np.inf), np.full(groups, np.inf)
    np.maximum.at(highest, group_N, earned_N)
    np.minimum.at(lowest, group_N, earned_N)
    anchor_T = np.unique(np.stack([group_N[runs.owner_T], episodes.state_T]), axis=1, return_inverse=True)[1]
    visits = np.unique(np.stack([anchor_T, runs.owner_T]), axis=1)
    visitors = np.bincount(visits[0])
    return Diagnostics(
        steps=runs.steps,
        tasks=groups,
        silent_groups=float((highest - lowest <= 1e-9).mean()),
        shared_states=float((visitors[anchor_T] > 1).mean()),
        deciles={
            str(level): _deciles(credits.filter(pc.equal(credits["level"], level)), runs.length_N)
            for level in pc.unique(credits["level"])
        },
    )


def together(diagnoses: Sequence[Diagnostics]) -> Diagnostics:
    """The same over several tables."""
    steps, tasks = sum(diagnosis.steps for diagnosis in diagnoses), sum(diagnosis.tasks for diagnosis in diagnoses)
    levels = dict.fromkeys(level for diagnosis in diagnoses for level in diagnosis.deciles)
    return Diagnostics(
        steps=steps,
        tasks=tasks,
        silent_groups=sum(diagnosis.silent_groups * diagnosis.tasks for diagnosis in diagnoses) / max(tasks, 1),
        shared_states=sum(diagnosis.shared_states * diagnosis.steps for diagnosis in diagnoses) / max(steps, 1),
        deciles={
            level: np.average(
                [diagnosis.deciles[level] for diagnosis in diagnoses],
                axis=0,
                weights=[diagnosis.steps for diagnosis in diagnoses],
            ).tolist()
            for level in levels
        },
    )


def _deciles(credits: pa.Table, length_N: Ints) -> list[float]:
    """Share of |advantage| by tenth of the episode."""
    size = np.abs(credits["advantage"].to_numpy())
    tenth = np.minimum(credits["index"].to_numpy() * DECILES // length_N[codes(credits["trajectory_id"])], DECILES - 1)
    whole = np.bincount(tenth.astype(np.int64), size, DECILES)
    shares: list[float] = (whole / max(float(whole.sum()), 1e-12)).tolist()
    return shares


def explained_variance(returns: Floats, values: Floats) -> float:
    """1 − Var(R − V) / Var(R): 1 for a perfect critic, 0 for a constant one; 0 where returns do not vary."""
    spread = float(np.var(returns))
    return 1.0 - float(np.var(returns - values)) / spread if spread > 0 else 0.0
