"""Hierarchical students against flat ones, in kitchens of growing horizons.

    OMP_NUM_THREADS=1 python benchmarks/hierarchy.py --lake data/hierarchy --seeds 5 --plot horizon.png

For each kitchen (named by the median steps of its expert) teachers play once; every arm learns from that one snapshot
with each seed and plays the same held-out tasks under the same decoding rules. The controls of a hierarchical student,
two models of N parameters: a flat one of N, one of nearly 2N with a learning rate of its own, and one of N that trains
for about as many CPU seconds. One JSON line a kitchen, arm and seed; then rates with Wilson intervals over all seeds'
plays by the expert's length, and the differences of the hierarchical arm to each control, paired by task and seed, with
intervals from a bootstrap over seeds and tasks. Stopped and started again, it trains only what it had not finished.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flywheel.collect.stage import collect
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.evaluation.statistics import Interval, crossed_mean, rate
from flywheel.filters.curate import curate
from flywheel.policies.registry import RANDOM, policy_directory
from flywheel.policies.students import load_policy
from flywheel.rollouts.play import rehearse
from flywheel.trajectory import Split, Task

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"
KITCHENS = {24: (3, 3, 60), 41: (11, 3, 120), 49: (11, 5, 150)}
"""Median steps of the expert → rooms, ingredients, most steps of an episode."""


def epochs(*, planner: int = 1, executor: int = 1, flat: int = 1) -> str:
    """Passes of the roles, as a setting."""
    return f"train.epochs={{planner={planner}, executor={executor}, flat={flat}}}"


HIERARCHICAL = "hierarchical, N + N"
ARMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    HIERARCHICAL: ("hierarchical", (epochs(planner=5, executor=2),)),
    "flat, N": ("flat", (epochs(flat=3),)),
    "flat, N, as long": ("flat", (epochs(flat=13),)),
    "flat, 2N": ("flat", ("student.hidden=224", "train.learning_rate=0.001", epochs(flat=5))),
}
"""Arm → kind of student, settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, required=True, help="a folder; one lake a kitchen lies in it")
    parser.add_argument("--kitchens", type=int, nargs="+", choices=list(KITCHENS), default=list(KITCHENS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1200, help="of the teachers, in each kitchen")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--split", choices=["dev", "test"], default="test", help="dev: to choose settings by")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every arm")
    given = parser.parse_args()
    outcomes = {kitchen: outcomes_of(kitchen, given) for kitchen in given.kitchens}
    for kitchen, (lengths, solved) in outcomes.items():
        report(kitchen, lengths, solved)
    if given.plot:
        plot(given.plot, {kitchen: solved for kitchen, (_, solved) in outcomes.items()})


def outcomes_of(kitchen: int, given: argparse.Namespace) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(expert's steps by task, arm → solved (seeds, tasks)) of one kitchen."""
    base = settings_of(kitchen, 0, (), given)
    with (
        Lake.of(base, create=True) as lake,
        open_world(base.environment.name, canonical(base.environment.parameters)) as world,
    ):
        collect(base, lake, 1, RANDOM)
        curate(base, lake)
        tasks = world.tasks(Split(given.split), 5000, given.tasks)
        lengths = np.array([len(world.facts(task).gold_actions) for task in tasks])
        solved: dict[str, list[list[bool]]] = {arm: [] for arm in given.arms}
        for seed in range(given.seeds):
            for arm in given.arms:
                kind, arm_settings = ARMS[arm]
                settings = settings_of(kitchen, seed, arm_settings, given)
                solved[arm].append(run(settings, lake, world, kind, tasks, {"kitchen": kitchen, "arm": arm}))
        return lengths, {arm: np.array(rows, np.float64) for arm, rows in solved.items()}


def settings_of(kitchen: int, seed: int, arm_settings: Sequence[str], given: argparse.Namespace) -> Config:
    """The quickstart's settings, in another kitchen."""
    rooms, ingredients, steps = KITCHENS[kitchen]
    return load(
        CONFIG,
        [
            f"data_dir={given.lake}/{kitchen}",
            f"seed={seed}",
            f"collect.episodes={given.episodes}",
            f"environment.max_steps={steps}",
            f"environment.parameters.numLocations={rooms}",
            f"environment.parameters.numIngredients={ingredients}",
            *arm_settings,
            *given.set,
        ],
    )


def run(
    settings: Config, lake: Lake, world: World, kind: str, tasks: Sequence[Task], label: Mapping[str, object]
) -> list[bool]:
    """Distill an arm's student and play the tasks; which of them it solved."""
    began = time.process_time()
    card = distill(settings, lake, kind, 1)
    trained = time.process_time() - began
    played = rehearse(settings, world, load_policy(policy_directory(lake, card.policy_id)), tasks, "evaluate")
    by_task = {trajectory.task_id: trajectory for trajectory in played}
    solved = [bool(by_task[task.task_id].success) for task in tasks]
    score = np.mean([by_task[task.task_id].score or 0.0 for task in tasks])
    row = {**label, "seed": settings.seed, "policy": card.policy_id, "parameters": card.parameters}
    row |= {"trajectories": card.trajectories, "train_cpu_seconds": round(trained)}
    print(json.dumps({**row, "solved": sum(solved), "tasks": len(tasks), "score": round(float(score), 3)}), flush=True)
    return solved


def report(kitchen: int, lengths: np.ndarray, solved: Mapping[str, np.ndarray]) -> None:
    """Rates by third of the expert's length, and the hierarchical arm's differences to each other arm."""
    cuts = np.quantile(lengths, [1 / 3, 2 / 3])
    third = np.searchsorted(cuts, lengths)
    names = [f"up to {cuts[0]:.0f} steps", f"to {cuts[1]:.0f}", "longer"]
    for arm, solved_SK in solved.items():
        row = {"kitchen": kitchen, "arm": arm, "all": percent(wilson(solved_SK))}
        row |= {names[number]: percent(wilson(solved_SK[:, third == number])) for number in range(3)}
        if arm != HIERARCHICAL and HIERARCHICAL in solved:
            gain_SK = solved[HIERARCHICAL] - solved_SK
            row["hierarchical ahead by"] = percent(crossed_mean(gain_SK), sign="+")
            row["… on the longest third"] = percent(crossed_mean(gain_SK[:, third == 2]), sign="+")
        print(json.dumps(row, ensure_ascii=False), flush=True)


def plot(path: Path, outcomes: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Success against the expert's median steps, an arm a line."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="median steps of the expert", ylabel="solved, %")
    for arm in next(iter(outcomes.values())):
        rates = [wilson(solved[arm]) for solved in outcomes.values()]
        middle = np.array([100 * interval.value for interval in rates])
        around = np.array([[100 * interval.low for interval in rates], [100 * interval.high for interval in rates]])
        axes.errorbar(list(outcomes), middle, abs(around - middle), marker="o", capsize=3, label=arm)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def wilson(solved_SK: np.ndarray) -> Interval:
    """The share of plays that were solved, over seeds and tasks."""
    return rate(int(solved_SK.sum()), solved_SK.size)


def percent(interval: Interval, sign: str = "") -> str:
    low, high = (format(100 * bound, f"{sign}.1f") for bound in (interval.low, interval.high))
    return f"{100 * interval.value:{sign}.1f} ({low} to {high})"


if __name__ == "__main__":
    main()
