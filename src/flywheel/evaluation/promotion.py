"""Promotion: challengers meet the champion on held-out tasks, and the best of those that beat it takes its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
from sqlalchemy import insert, select

from flywheel.collect.curriculum import horizon
from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import GATE, now
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.capabilities import KnowsSolutions
from flywheel.environments.catalog import open_configured
from flywheel.environments.protocol import World
from flywheel.environments.tool_environment import data_of
from flywheel.errors import PolicyError
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.evaluate import Rate, evaluate, held_out_tasks, outcomes
from flywheel.evaluation.gate import at_look, decide, look_sizes
from flywheel.evaluation.replay_gate import RECORD, replayed_decision
from flywheel.policies.registry import RANDOM, crown
from flywheel.trajectory import Split, Task, digest

Progress = Callable[[int], None]


def opponent_of(config: Config, champion_id: str) -> str:
    """Whom challengers must beat: the champion, or before the first promotion the baseline; of what is recorded and
    never played, the record."""
    first = RECORD if config.is_recorded else config.gate.baseline
    return first if champion_id == RANDOM else champion_id


def episodes_of(config: Config, challengers: int) -> int | None:
    """Episodes that a gate hears of: both sides of each test; None where looks or a list of tasks may make it fewer."""
    if config.gate.looks > 1 or config.tasks.source or config.is_recorded:
        return None
    return 2 * config.evaluate.dev_tasks * challengers


def gate(
    config: Config,
    lake: Lake,
    challengers: Sequence[str],
    opponent: str,
    iteration: int,
    progress: Progress = lambda done: None,
) -> list[GateDecision]:
    """Play challengers and the champion on this iteration's dev tasks, or against the dev sessions where nothing can be
    played; the best of those that win the paired test is promoted. Each may spend an equal share of the level. The
    decisions, in the challengers' order.

    A gate is decided once: asked again, it answers what it answered.
    """
    gate_ids = [
        digest("gate", config.identity(), iteration, sorted(challengers), name, opponent) for name in challengers
    ]
    if known := _decided(lake, gate_ids):
        return known
    if opponent in challengers:
        raise PolicyError(f"{opponent} is the champion already; there is nothing to decide")
    alpha = config.gate.alpha / len(challengers)
    if config.is_recorded:
        decisions = [replayed_decision(config, lake, name, opponent, alpha, progress) for name in challengers]
    else:
        with open_configured(config) as world:
            tasks = held_out_tasks(config, world, Split.DEV, iteration)
            slices = {task.task_id: slices_of(world, task, config.gate.slices) for task in tasks}
        decisions = [
            _decision(config, lake, name, opponent, iteration, progress, tasks, slices, alpha) for name in challengers
        ]
    decisions = [replace(decision, challengers=len(challengers)) for decision in decisions]
    winners = [number for number, decision in enumerate(decisions) if decision.promoted]
    if winners:
        best = max(winners, key=lambda number: decisions[number].gain)
        decisions = [
            replace(decision, promoted=False, better=challengers[best])
            if decision.promoted and number != best
            else decision
            for number, decision in enumerate(decisions)
        ]
        crown(lake, challengers[best], decisions[best].sentence, gate_ids[best])
    with lake.catalog.write() as connection:
        rows = [
            {
                "gate_id": gate_id,
                "iteration": iteration,
                "challenger_id": name,
                "champion_id": opponent,
                "promoted": int(decision.promoted),
                "result": json.dumps(asdict(decision)),
                "created_at": now(connection),
            }
            for gate_id, name, decision in zip(gate_ids, challengers, decisions, strict=True)
        ]
        connection.execute(insert(GATE), rows)
    return decisions


def slices_of(world: World, task: Task, fields: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the parts that a task belongs to: environment and family, what the `fields` of its data say, and its
    horizon where the world knows it."""
    data = data_of(task)
    values = [(field, data[field]) for field in fields if isinstance(data, dict) and data.get(field) is not None]
    by_field = [
        f"{field} {each}" for field, value in values for each in (value if isinstance(value, list) else [value])
    ]
    names = (task.environment, task.family or f"{task.environment} {task.parameters}", *by_field)
    if not isinstance(world, KnowsSolutions):
        return names
    low = 2 ** horizon(world, task)
    return (f"{low} to {2 * low - 1} steps", *names)


def _decision(
    config: Config,
    lake: Lake,
    challenger: str,
    opponent: str,
    iteration: int,
    progress: Progress,
    tasks: Sequence[Task],
    slices: Mapping[str, Sequence[str]],
    alpha: float,
) -> GateDecision:
    """One challenger's test, in as many looks as the config allows."""
    sizes = look_sizes(len(tasks), config.gate.looks)
    margin = config.gate.margin if opponent == config.gate.baseline else 0.0
    for look, size in enumerate(sizes, start=1):
        rates = [
            evaluate(config, lake, name, Split.DEV, iteration, progress, tasks[:size])
            for name in (challenger, opponent)
        ]
        compared = _compare(config, lake, rates, tasks[:size], slices, alpha / len(sizes), margin)
        decision = at_look(compared, look, len(sizes))
        if decision.promoted or decision.hopeless:
            break
    return decision


def _compare(
    config: Config,
    lake: Lake,
    rates: Sequence[Rate],
    tasks: Sequence[Task],
    slices: Mapping[str, Sequence[str]],
    alpha: float,
    margin: float,
) -> GateDecision:
    """The paired test on those tasks that broke for neither."""
    ours, theirs = (outcomes(lake, rate.policy_id, tasks) for rate in rates)
    shared = [task for task in tasks if task.task_id in ours.keys() & theirs.keys()]
    ids = [task.task_id for task in shared]
    names = dict.fromkeys(name for task_id in ids for name in slices[task_id])
    return decide(
        [ours[task_id][0] for task_id in ids],
        [theirs[task_id][0] for task_id in ids],
        alpha=alpha,
        power=config.gate.power,
        gains=[ours[task_id][1] - theirs[task_id][1] for task_id in ids],
        groups=[task.group for task in shared],
        slices={name: np.array([name in slices[task_id] for task_id in ids]) for name in names},
        margin=margin,
    )


def _decided(lake: Lake, gate_ids: Sequence[str]) -> list[GateDecision]:
    """The decisions of gates, or none where they are not decided."""
    with lake.catalog.read() as connection:
        rows = connection.execute(select(GATE.c.gate_id, GATE.c.result).where(GATE.c.gate_id.in_(gate_ids))).all()
    results = {row.gate_id: GateDecision.from_json(json.loads(row.result)) for row in rows}
    return [results[gate_id] for gate_id in gate_ids] if results else []
