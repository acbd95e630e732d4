"""What a decision reads, step by step: a hierarchical agent, a flat one with a window, and one with its whole history.

    python benchmarks/horizon.py --data-dir data/quickstart --policy champion --steps 500 --plot horizon.png

A random policy walks a kitchen for so many steps; each agent's contexts are folded over what it saw, and counted with
the student's own tokenizer. The hierarchical agent gets a new subgoal every eight steps, and its planner's reading is
counted at the step where it speaks. JSON on stdout, tokens by step in the plot.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flywheel.agents.contexts.history import FlatContext, HierarchicalContext, Limits
from flywheel.agents.contexts.prompts import ACT, SUBGOAL, Piece, SubgoalOutcome
from flywheel.agents.contexts.tokenization import PieceTokenizer
from flywheel.agents.scripted import RandomPolicy
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import observation_of
from flywheel.environments.catalog import canonical, open_world
from flywheel.policies.card import ROLES, read_card
from flywheel.policies.models import load_tokenizer
from flywheel.policies.registry import champion, policy_directory, registered
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Split, Step

ROOT = Path(__file__).parents[1]
EVERY = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--policy", default="champion")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    lake = Lake(given.data_dir)
    name = champion(lake) if given.policy == "champion" else given.policy
    folder = policy_directory(lake, str(registered(lake, name).policy_id))
    card = read_card(folder)
    tokens = PieceTokenizer(load_tokenizer(folder / ROLES[card.kind][-1]))
    counted: dict[str, list[list[int]]] = {"hierarchical": [], "flat, window": [], "flat, full history": []}
    for steps in walks(given.episodes, given.steps):
        counted["hierarchical"].append(hierarchical(steps, card.limits, tokens))
        counted["flat, window"].append(flat(steps, card.limits, tokens))
        counted["flat, full history"].append(flat(steps, replace(card.limits, window_steps=10**9), tokens))
    mean = {name: np.mean(rows, axis=0) for name, rows in counted.items()}
    told = {
        name: {
            f"steps {a} to {b - 1}": float(row[a:b].mean())
            for a, b in ((16, 32), (given.steps // 4, given.steps // 4 + 16), (given.steps - 16, given.steps))
        }
        for name, row in mean.items()
    }
    if given.plot:
        plot(mean, given.plot)
    print(json.dumps({"episodes": len(counted["hierarchical"]), "mean tokens a decision": told}, indent=2))


def walks(episodes: int, length: int) -> list[tuple[Step, ...]]:
    """Random episodes that are long enough."""
    config = load(ROOT / "configs" / "quickstart.toml")
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        found: list[tuple[Step, ...]] = []
        start = 0
        while len(found) < episodes:
            jobs = [Job(task) for task in world.tasks(Split.TRAIN, start, 16)]
            start += 16
            policy = RandomPolicy(max_repeats=10**9)
            rollout = Rollout(
                policy, jobs, in_process(world, 16), budget=Budget(length), origin=Origin(0, "benchmark", "")
            )
            found += [trajectory.steps for trajectory in rollout if trajectory.length == length]
    return found[:episodes]


def flat(steps: tuple[Step, ...], limits: Limits, tokens: PieceTokenizer) -> list[int]:
    context = FlatContext("Cook.", limits)
    counts = []
    for step in steps:
        seen = observation_of(step)
        window = context.observe(seen)
        counts.append(len(tokens.context([*window.pieces, Piece(marker=ACT)])))
        context.act(seen, step.action)
    return counts


def hierarchical(steps: tuple[Step, ...], limits: Limits, tokens: PieceTokenizer) -> list[int]:
    context = HierarchicalContext("Cook.", limits)
    counts = []
    for step in steps:
        seen, planned = observation_of(step), 0
        context.observe(seen)
        if not context.must_plan and context.steps_in_segment >= EVERY:
            context.finish(SubgoalOutcome.DONE)
        if context.must_plan:
            planned = len(tokens.context([*context.plan(seen).pieces, Piece(marker=SUBGOAL)]))
            context.adopt(seen, f"reach {step.location}")
        assert context.window is not None
        counts.append(planned + len(tokens.context([*context.window.pieces, Piece(marker=ACT)])))
        context.act(seen, step.action)
    return counts


def plot(mean: dict[str, np.ndarray], path: Path) -> None:  # type: ignore[type-arg]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, row in mean.items():
        axes.plot(row, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="tokens that a decision reads", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
