"""What may start a distillation: enough new verified trajectories, or a slice in which the champion got worse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from scipy.stats import fisher_exact
from sqlalchemy import select

from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import GATE
from flywheel.datasets.lake.lake import Lake
from flywheel.evaluation.decision import GateDecision
from flywheel.flows.events import CROWNED, DROPPED, READY, tell

ALPHA = 0.05
"""Level of the test that a drop is more than chance, for each slice."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A slice in which the champion does worse than the champion after the gate before."""

    slice: str
    before: float
    after: float
    p_value: float


def untaught(lake: Lake) -> int:
    """How many verified training trajectories taught no student yet."""
    rows = lake.sql(
        """select count(*) as n from trajectories anti join lineage using (trajectory_id)
           where ours and split = 'train' and purpose = 'collect' and route = 'supervised' and revoked is null"""
    )
    return int(rows.to_pylist()[0]["n"])


def announce_curated(config: Config, lake: Lake) -> int:
    """Say so if enough verified trajectories wait for a student; how many wait."""
    waiting = untaught(lake)
    if config.triggers.new_verified and waiting >= config.triggers.new_verified:
        tell(config.name, READY, verified=waiting, wanted=config.triggers.new_verified)
    return waiting


def announce_gate(config: Config, lake: Lake, iteration: int, decisions: Mapping[str, GateDecision]) -> list[Drop]:
    """Say who is champion now, and in which slices success fell since the gate before."""
    deciding = next(iter(decisions.values()))
    for name, decision in decisions.items():
        if decision.promoted:
            deciding = decision
            tell(config.name, CROWNED, iteration=iteration, champion=name, decision=decision.sentence)
    before = _gate_before(lake, iteration)
    drops = drops_between(before, deciding, config.triggers.slice_drop) if before else []
    for drop in drops:
        tell(config.name, DROPPED, iteration=iteration, **asdict(drop))
    return drops


def drops_between(before: GateDecision, after: GateDecision, least: float, alpha: float = ALPHA) -> list[Drop]:
    """Slices of two gates in which the success of whoever was in force afterwards fell by at least `least`, and by
    more than chance: Fisher's exact test, one-sided, since the gates drew different tasks. `least` 0: none."""
    if not least:
        return []
    earlier = {each.name: each for each in before.slices}
    drops = []
    for now in after.slices:
        if (then := earlier.get(now.name)) is None:
            continue
        had, have = then.solved(by_challenger=before.promoted), now.solved(by_challenger=after.promoted)
        rate_before, rate_now = had / then.tasks, have / now.tasks
        table = [[had, then.tasks - had], [have, now.tasks - have]]
        p_value = float(fisher_exact(table, alternative="greater").pvalue)
        if rate_before - rate_now >= least and p_value <= alpha:
            drops.append(Drop(now.name, rate_before, rate_now, p_value))
    return drops


def _gate_before(lake: Lake, iteration: int) -> GateDecision | None:
    """The gate that decided who was in force: that of the promoted challenger, or of any where none was."""
    query = (
        select(GATE.c.result)
        .where(GATE.c.iteration < iteration)
        .order_by(GATE.c.iteration.desc(), GATE.c.promoted.desc(), GATE.c.gate_id)
        .limit(1)
    )
    with lake.catalog.read() as connection:
        result = connection.scalar(query)
    return GateDecision.from_json(json.loads(result)) if result else None
