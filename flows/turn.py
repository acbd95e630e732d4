"""One turn of the wheel on one screen: collect → curate → distill → evaluate → gate → redeploy.

Every stage is a plain function of (config, lake); Prefect runs, retries and records it. A finished stage finds its
results in the lake and does nothing, so a killed turn resumes by being run again.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.datasets.retention import tend
from flywheel.distill.collection import collect
from flywheel.distill.evaluation import Rate, evaluate, gate
from flywheel.distill.gate import Decision, foresight
from flywheel.distill.iterations import Iteration, begin, finish
from flywheel.distill.stage import distill
from flywheel.distill.students import PolicyCard
from flywheel.errors import InfrastructureError
from flywheel.filters.curate import curate
from flywheel.flows.artifacts import publish
from flywheel.flows.live import watched
from flywheel.flows.progress import bar, training_bar
from flywheel.flows.report import write_report
from flywheel.trajectory import Split


def broke(task: object, run: object, state: State[Any]) -> bool:
    """Broken infrastructure deserves one more try; what a user must mend does not."""
    return isinstance(state.result(raise_on_failure=False), InfrastructureError)


@flow(name="turn", persist_result=False, validate_parameters=False)
def turn(config: Config, number: int) -> dict[str, Any]:
    """Run one iteration to its end and return its report. A finished iteration returns its report at once."""
    lake = Lake.of(config, create=True)
    iteration = begin(config, lake, number)
    if iteration.finished:
        return iteration.report
    collect_stage(config, lake, iteration)
    curate_stage(config, lake, number)
    upkeep = upkeep_stage.submit(config, lake)
    teachers = [evaluate_stage(config, lake, name, number) for name in config.collect.teachers]
    challenger = distill_stage(config, lake, "hierarchical", number)
    control = distill_stage(config, lake, "flat", number)
    decision = gate_stage(config, lake, challenger, iteration)
    students = [evaluate_stage(config, lake, one.policy_id, number) for one in (control, challenger)]
    upkeep.wait()
    report = write_report(config, lake, number, [*teachers, *students], decision)
    finish(lake, number, report)
    return report


@task(name="collect", cache_policy=NO_CACHE, retries=1, retry_condition_fn=broke)
def collect_stage(config: Config, lake: Lake, iteration: Iteration) -> None:
    with watched(f"collect {iteration.number}", table=False) as (progress, company):
        counts = collect(config, lake, iteration.number, iteration.champion_id, progress, company)
    publish("collect", iteration.number, [{"policy": name, "episodes": count} for name, count in counts.items()])


@task(name="curate", cache_policy=NO_CACHE, retries=1, retry_condition_fn=broke)
def curate_stage(config: Config, lake: Lake, number: int) -> None:
    with bar(f"curate {number}") as progress:
        routes = curate(config, lake, progress)
    publish("curate", number, [{"route": name, "trajectories": count} for name, count in routes.items()])


@task(name="upkeep", cache_policy=NO_CACHE)
def upkeep_stage(config: Config, lake: Lake) -> None:
    """Runs beside distillation; a failed upkeep stops no turn, the next one does its work."""
    tend(lake, config.lake.retire)


@task(name="distill", cache_policy=NO_CACHE, retries=1, retry_condition_fn=broke)
def distill_stage(config: Config, lake: Lake, kind: str, number: int) -> PolicyCard:
    with training_bar(f"distill {number}") as progress:
        card = distill(config, lake, kind, number, progress)
    publish(f"distill-{kind}", number, [{"metric": name, "value": value} for name, value in card.metrics.items()])
    return card


@task(name="gate", cache_policy=NO_CACHE, retries=1, retry_condition_fn=broke)
def gate_stage(config: Config, lake: Lake, challenger: PolicyCard, iteration: Iteration) -> Decision:
    expected = foresight(config.evaluate.dev_tasks, config.gate.alpha, config.gate.power, config.gate.looks)
    publish("gate-expects", iteration.number, [{"expects": expected}])
    with bar(f"gate {iteration.number}") as progress:
        decision = gate(config, lake, challenger.policy_id, iteration.champion_id, iteration.number, progress)
    publish("gate", iteration.number, [{"decision": decision.sentence}])
    publish("gate-slices", iteration.number, [asdict(one) for one in decision.slices])
    return decision


@task(name="evaluate", cache_policy=NO_CACHE, retries=1, retry_condition_fn=broke)
def evaluate_stage(config: Config, lake: Lake, name: str, number: int) -> Rate:
    with bar(f"evaluate {number}") as progress:
        rate = evaluate(config, lake, name, Split.TEST, number, progress)
    publish(f"evaluate-{rate.policy}", number, [{"P(verified)": rate.rate, "low": rate.low, "high": rate.high}])
    return rate
