"""One turn of the wheel on one screen: collect → curate → distill → evaluate → gate → redeploy.

Every stage is a plain function of (config, lake); Prefect runs, retries and records it. A finished stage finds its
results in the lake and does nothing, so a killed turn resumes by being run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flywheel.collect.stage import collect, plan
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.turn_lock import sole_turn
from flywheel.datasets.maintenance.check import mend
from flywheel.datasets.maintenance.retention import tend
from flywheel.distill.launching import distill_together
from flywheel.distill.subgoals.segmentation import cut_missing, names_subgoals
from flywheel.errors import InfrastructureError, LakeAwayError
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.evaluate import Rate, evaluate
from flywheel.evaluation.gate import foresight
from flywheel.evaluation.promotion import episodes_of, gate, opponent_of
from flywheel.filters.curate import curate
from flywheel.filters.waiting import waiting
from flywheel.flows.artifacts import both, progress_artifact, publish, publish_report
from flywheel.flows.budget import BudgetTracker
from flywheel.flows.events import COLLECTED, CURATED, DECIDED, DISTILLED, EVALUATED, MENDED, NO_PLANNER, TURNED, tell
from flywheel.flows.iterations import Iteration, begin, finish
from flywheel.flows.monitor import watched
from flywheel.flows.progress import bar, training_bar
from flywheel.flows.report import write_report
from flywheel.flows.triggers import announce_gate
from flywheel.policies.card import PolicyCard
from flywheel.trajectory import Split


def broke(task: object, run: object, state: State[Any]) -> bool:
    """Infrastructure failures are retried; errors that a user must fix are not."""
    return isinstance(state.result(raise_on_failure=False), InfrastructureError | LakeAwayError)


STAGE: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": [2, 10, 30],
    "retry_condition_fn": broke,
}


@flow(name="turn", persist_result=False, validate_parameters=False)
def turn(config: Config, number: int) -> dict[str, Any]:
    """Run one iteration to its end and return its report. A finished iteration returns its report at once.

    Raises `LakeBusyError` while another turn runs on the lake, and `BudgetError` when the turn's budget is spent.
    """
    lake = Lake.of(config, create=True)
    with sole_turn(lake) as assure:
        iteration = begin(config, lake, number)
        if iteration.finished:
            return iteration.report
        budget = BudgetTracker(config, lake, number, assure)
        check_stage(budget)
        collect_stage(budget, iteration)
        curate_stage(budget)
        upkeep = upkeep_stage.submit(config, lake)
        teachers = [evaluate_stage(budget, name) for name in config.collect.teachers]
        kinds = ("flat", "hierarchical") if plans(budget) else ("flat",)
        challengers = [card.policy_id for card in distill_stage(budget, kinds)]
        decisions = gate_stage(budget, challengers, iteration)
        students = [evaluate_stage(budget, name) for name in challengers]
        upkeep.wait()
        return report_stage(budget, [*teachers, *students], decisions)


def plans(budget: BudgetTracker) -> bool:
    """Is there anything for a planner to name? Where there is not, that is told, and the flat student stands alone."""
    cut_missing(budget.lake, budget.config.train.segments)
    named = names_subgoals(budget.lake, budget.config.train.segments)
    if not named:
        tell(budget.config.name, NO_PLANNER, iteration=budget.iteration, source=budget.config.train.segments)
    return named


@task(name="check", **STAGE)
def check_stage(budget: BudgetTracker) -> None:
    """Files that are no longer what was written are set aside; what they held is collected and curated again."""
    with budget.stage("check"):
        lost = mend(budget.config, budget.lake)
    for problem in lost:
        tell(budget.config.name, MENDED, iteration=budget.iteration, file=problem.file, reason=problem.reason)
    if lost:
        publish(budget.config.name, "check", budget.iteration, [asdict(problem) for problem in lost])


@task(name="collect", **STAGE)
def collect_stage(budget: BudgetTracker, iteration: Iteration) -> None:
    total = sum(share.count for share in plan(budget.config, iteration.number, iteration.champion_id))
    with (
        budget.stage("collect", COLLECTED) as result,
        watched(f"collect {iteration.number}", total, table=False) as (progress, hooks),
        progress_artifact(budget.config.name, "collect", iteration.number, total) as shown,
    ):
        report = both(progress, shown)
        among = replace(hooks, enough=budget.over)
        counts = collect(budget.config, budget.lake, iteration.number, iteration.champion_id, report, among)
        result["episodes"] = counts
        budget.check("collect")
    publish(
        budget.config.name,
        "collect",
        iteration.number,
        [{"policy": name, "episodes": count} for name, count in counts.items()],
    )


@task(name="curate", **STAGE)
def curate_stage(budget: BudgetTracker) -> None:
    total = sum(map(len, waiting(budget.lake, budget.config)))
    with budget.stage("curate", CURATED) as result, bar(f"curate {budget.iteration}", total) as progress:
        result["routes"] = routes = curate(budget.config, budget.lake, budget.episodes("curate", progress))
    publish(
        budget.config.name,
        "curate",
        budget.iteration,
        [{"route": name, "trajectories": count} for name, count in routes.items()],
    )


@task(name="upkeep", cache_policy=NO_CACHE)
def upkeep_stage(config: Config, lake: Lake) -> None:
    """Runs beside distillation; a failed upkeep stops no turn, the next one does its work."""
    tend(lake, config.lake.retire)


@task(name="distill", **STAGE)
def distill_stage(budget: BudgetTracker, kinds: Sequence[str]) -> list[PolicyCard]:
    config, number = budget.config, budget.iteration
    with budget.stage("distill"), training_bar(f"distill {number}") as progress:
        cards = distill_together(config, budget.lake, kinds, number, budget.updates("distill", progress))
    for card in cards:
        student = {"kind": card.kind, "policy_id": card.policy_id, "parent": card.parent_policy_id}
        tell(config.name, DISTILLED, iteration=number, seconds=round(budget.seconds["distill"], 3), **student)
        rows = [{"metric": name, "value": value} for name, value in card.metrics.items()]
        publish(config.name, f"distill-{card.kind}", number, rows)
    return cards


@task(name="gate", **STAGE)
def gate_stage(budget: BudgetTracker, challengers: list[str], iteration: Iteration) -> dict[str, GateDecision]:
    """The decision on each challenger. The first champion must beat the config's baseline."""
    config, lake, number = budget.config, budget.lake, budget.iteration
    expected = foresight(
        config.evaluate.dev_tasks, config.gate.alpha, config.gate.power, config.gate.looks, len(challengers)
    )
    publish(config.name, "gate-expects", number, [{"expects": expected}])
    total = episodes_of(config, len(challengers))
    with budget.stage("gate", DECIDED) as result, bar(f"gate {number}", total) as progress:
        report = budget.episodes("gate", progress)
        opponent = opponent_of(config, iteration.champion_id)
        decisions = dict(zip(challengers, gate(config, lake, challengers, opponent, number, report), strict=True))
        sentences: list[dict[str, object]] = [
            {"challenger": name, "decision": decision.sentence} for name, decision in decisions.items()
        ]
        promoted = next((name for name, decision in decisions.items() if decision.promoted), None)
        result |= {"promoted": promoted, "decisions": sentences}
    announce_gate(config, lake, number, decisions)
    publish(config.name, "gate", number, sentences)
    slices = [{"challenger": name, **asdict(each)} for name in decisions for each in decisions[name].slices]
    publish(config.name, "gate-slices", number, slices)
    return decisions


@task(name="evaluate", **STAGE)
def evaluate_stage(budget: BudgetTracker, name: str) -> Rate:
    with (
        budget.stage("evaluate", EVALUATED) as result,
        bar(f"evaluate {name}", budget.config.evaluate.test_tasks) as progress,
    ):
        report = budget.episodes("evaluate", progress)
        rate = evaluate(budget.config, budget.lake, name, Split.TEST, budget.iteration, report)
        result |= {"policy_id": rate.policy_id, "rate": rate.rate, "low": rate.low, "high": rate.high}
    rows: list[dict[str, object]] = [{"P(verified)": rate.rate, "low": rate.low, "high": rate.high}]
    publish(budget.config.name, f"evaluate-{rate.policy}", budget.iteration, rows)
    return rate


@task(name="report", **STAGE)
def report_stage(budget: BudgetTracker, rates: list[Rate], decisions: dict[str, GateDecision]) -> dict[str, Any]:
    with budget.stage("report"):
        report = write_report(budget.config, budget.lake, budget.iteration, rates, decisions, budget.seconds)
        publish_report(budget.config.name, budget.iteration, report["files"])
        finish(budget.lake, budget.iteration, report)
    tell(budget.config.name, TURNED, iteration=budget.iteration, seconds=budget.seconds)
    return report
