"""Steering a served or deployed flywheel from another terminal: pause, resume, trigger; what runs and what is next."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flywheel.datasets.lake.url import LakeUrl, parse_lake_url
from flywheel.errors import BudgetError, FlywheelError, PrerequisiteError
from flywheel.flows.events import lake_resource
from flywheel.flows.source import SOURCE, settings_of

TURN, DISTILL = "next-turn", "distill-now"
SPENT_STATE = "Budget spent"
"""The name of the state in which a turn whose budget is spent ends."""


def pause(name: str) -> dict[str, Any]:
    """No tick of the schedule starts a turn until it is resumed; what runs goes on."""
    with get_client(sync_client=True) as client:
        client.pause_deployment(_deployment(client, TURN, name).id)
        return standing(client, name)


def resume(name: str) -> dict[str, Any]:
    """The schedule starts turns again."""
    with get_client(sync_client=True) as client:
        client.resume_deployment(_deployment(client, TURN, name).id)
        return standing(client, name)


def trigger(name: str, flow: str, overrides: list[str], parameters: dict[str, Any], *, wait: bool) -> dict[str, Any]:
    """Start a run now, with more overrides and parameters than its deployment has; its name and state.

    Raises `FlywheelError` if it was waited for and did not complete, `BudgetError` if its budget was spent.
    """
    with get_client(sync_client=True) as client:
        deployment = _deployment(client, flow, name)
    if overrides:
        parameters = {**parameters, "overrides": [*(deployment.parameters.get("overrides") or []), *overrides]}
    run = run_deployment(
        deployment.id, parameters=parameters, timeout=None if wait else 0, poll_interval=1, as_subflow=False
    )
    assert isinstance(run, FlowRun)
    state = run.state
    if wait and state is not None and state.name == SPENT_STATE:
        raise BudgetError(str(state.message))
    if wait and state is not None and not state.is_completed():
        raise FlywheelError(f"{run.name} ended as {state.name}: {state.message}")
    return {"run": run.name, "id": str(run.id), "state": state.name if state else "Scheduled"}


def standing(client: SyncPrefectClient, name: str) -> dict[str, Any]:
    """What runs, what is next, and whether the schedule is paused."""
    deployment = _deployment(client, TURN, name)
    mine = [deployment.id, *(other.id for other in (_found(client, DISTILL, name),) if other)]
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=mine)),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
        ),
    )
    scheduled = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=mine)),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    due = scheduled[0].expected_start_time if scheduled else None
    return {
        "running": [run.name for run in runs],
        "next": due.isoformat(timespec="seconds") if due else None,
        "paused": deployment.paused,
    }


def standing_at(place: LakeUrl) -> dict[str, Any] | None:
    """The standing of the deployment whose flywheel works on the lake at a place, if the server has one."""
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[TURN]))):
            try:
                config = settings_of(**{key: deployment.parameters.get(key) for key in SOURCE})
            except FlywheelError:  # of another machine
                continue
            if lake_resource(parse_lake_url(config.lake.url or config.data_dir)) == lake_resource(place):
                return {"deployment": f"{TURN}/{deployment.name}", **standing(client, deployment.name)}
    return None


def _found(client: SyncPrefectClient, flow: str, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{flow}/{name}")
    except ObjectNotFound:
        return None


def _deployment(client: SyncPrefectClient, flow: str, name: str) -> DeploymentResponse:
    if (deployment := _found(client, flow, name)) is None:
        raise PrerequisiteError(
            f"this Prefect server has no deployment {flow}/{name}; make it with flywheel serve or flywheel deploy"
        )
    return deployment
