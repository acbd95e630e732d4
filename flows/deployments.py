"""Deployments of a flywheel: the next turn on a schedule, and distillation on demand; served here or on a work pool.

Both flows hold one global concurrency limit, `flywheel-NAME`: one of them runs at a time, whoever started it.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect import serve as prefect_serve
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    State,
    StateType,
)
from prefect.concurrency.sync import concurrency
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.launching import distill_apart
from flywheel.errors import BudgetError, LakeBusyError
from flywheel.flows.automations import install
from flywheel.flows.control import SPENT_STATE
from flywheel.flows.events import DISTILLED, tell
from flywheel.flows.iterations import current, iterations
from flywheel.flows.logs import log_to_stderr
from flywheel.flows.pools import ensure
from flywheel.flows.schedules import prefect_schedule
from flywheel.flows.server_outage import turn_through_outages
from flywheel.flows.source import settings_of
from flywheel.runtime.parent import die_with_parent

LEASE = 60.0
"""Seconds after which a limit is free again if its holder is gone and could not say so."""
BUSY_SECONDS = 10.0
"""Between two attempts while another turn runs on the lake."""
ELSEWHERE = "another turn or distillation runs; serve.late = 'skip' leaves this one out"
TOGETHER = 8
"""Flow runs whose processes may wait beside the running one."""
STARTER = "FLYWHEEL_STARTER"
"""The environment variable with the process id of `flywheel serve`, without which its runs are not to go on."""
SCHEDULED = "auto-scheduled"
"""Prefect's tag of runs that a schedule made."""


@flow(name="next-turn", persist_result=False)
def next_turn(
    config_file: str = "", overrides: list[str] | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any] | State[Any]:
    """Resume the iteration that a stopped run left, or begin the one after the last finished."""
    config = _begun(config_file, overrides, settings)
    skips = config.serve.late == "skip" and SCHEDULED in flow_run.get_tags()
    if skips and _late(config):
        return Cancelled(message=f"late by more than {config.serve.grace:g} s; serve.late = 'skip' leaves it out")
    with ExitStack() as held:
        try:
            held.enter_context(_alone(config, 1.0 if skips else None))
        except TimeoutError:
            return Cancelled(message=ELSEWHERE)
        while True:
            try:
                return turn_through_outages(config, next_number(config))
            except BudgetError as spent:
                return Cancelled(message=str(spent), name=SPENT_STATE)
            except LakeBusyError:
                if skips:
                    return Cancelled(message=ELSEWHERE)
            time.sleep(BUSY_SECONDS)


@flow(name="distill-now", persist_result=False)
def distill_now(
    config_file: str = "",
    overrides: list[str] | None = None,
    settings: dict[str, Any] | None = None,
    kind: str = "hierarchical",
    where: str = "",
    dataset: str = "",
) -> dict[str, Any]:
    """Distill a student of all that is verified, of what a condition selects, or of a dataset; once of the same."""
    config = _begun(config_file, overrides, settings)
    lake = Lake.of(config)
    with _alone(config):
        card = distill_apart(config, lake, kind, current(lake), condition=where, dataset=dataset)
    result = {"kind": kind, "policy_id": card.policy_id, "parent": card.parent_policy_id}
    tell(config.name, DISTILLED, iteration=card.iteration, **result)
    return result


def next_number(config: Config) -> int:
    """The first iteration that is not finished."""
    return 1 + sum(iteration.finished for iteration in iterations(Lake.of(config, create=True)))


def limit_of(config: Config) -> str:
    """The name of the global concurrency limit of a flywheel."""
    return f"flywheel-{config.name}"


def deployments(config: Config, source: dict[str, Any], pool: str | None = None) -> list[RunnerDeployment]:
    """The scheduled turn and the distillation on demand. `source`: the parameters that say where settings are.

    Raises `ConfigError` for a schedule that is none.
    """
    schedule = prefect_schedule(config)
    skips = config.serve.late == "skip"
    strategy = ConcurrencyLimitStrategy.CANCEL_NEW if skips else ConcurrencyLimitStrategy.ENQUEUE
    common: dict[str, Any] = {"work_pool_name": pool, "entrypoint_type": EntrypointType.MODULE_PATH}
    return [
        RunnerDeployment.from_flow(
            next_turn,
            name=config.name,
            schedule=schedule,
            parameters=source,
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
            **common,
        ),
        RunnerDeployment.from_flow(
            distill_now, name=config.name, parameters={**source, "kind": config.triggers.kind}, **common
        ),
    ]


def serve(config: Config, config_file: Path, overrides: list[str], *, own_server: bool) -> None:
    """Serve the deployments until Ctrl-C. `own_server`: nothing else uses the server, so that runs which it still takes
    for running died with it."""
    placed = [*overrides, f"data_dir={config.data_dir.absolute()}"]
    made = deployments(config, {"config_file": str(config_file.absolute()), "overrides": placed})
    names, _ = _installed(config, made)
    if own_server:
        _bury(names)
    os.environ[STARTER] = str(os.getpid())
    prefect_serve(*made, pause_on_shutdown=False, limit=TOGETHER, print_starting_message=False)


def deploy(config: Config, pool: str, pool_type: str, image: str) -> dict[str, Any]:
    """Put the deployments on a work pool of Prefect, made if there is none of the name; what was made, by name."""
    if pool_type == "process":
        config = config.model_copy(update={"data_dir": config.data_dir.absolute()})
    made = deployments(config, {"settings": config.model_dump(mode="json")}, pool)
    with get_client(sync_client=True) as client:
        ensure(client, pool, pool_type)
    _, automations = _installed(config, made, work_pool_name=pool, image=image or None)
    return {
        "deployments": [f"{each.flow_name}/{each.name}" for each in made],
        "automations": automations,
        "pool": pool,
        "next": f"prefect worker start --pool {pool}",
    }


def _installed(config: Config, made: list[RunnerDeployment], **where: Any) -> tuple[list[UUID], list[str]]:
    """Make limit, deployments and automations; ids of the deployments and names of the automations. A schedule that was
    paused stays so."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit_of(config), 1)
        for deployment in made:
            with suppress(ObjectNotFound):
                deployment.paused = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}").paused
    ids = [deployment.apply(**where) for deployment in made]
    names = [deployment_id for deployment_id in ids if isinstance(deployment_id, UUID)]
    return names, install(config, *names)


def _begun(config_file: str, overrides: list[str] | None, settings: dict[str, Any] | None) -> Config:
    """What every run does first: tie its life to its parent's, set up the log, read the settings."""
    if starter := os.environ.get(STARTER):
        die_with_parent()
        if os.getppid() != int(starter):  # gone before the kernel was asked to tell
            os._exit(1)
    log_to_stderr()
    return settings_of(config_file, overrides, settings)


def _late(config: Config) -> bool:
    due: datetime = flow_run.get_scheduled_start_time()
    return datetime.now(UTC) - due > timedelta(seconds=config.serve.grace)


def _alone(config: Config, timeout: float | None = None) -> AbstractContextManager[None]:
    """Hold the flywheel's limit. Raises `TimeoutError` after so many seconds of waiting; None: waits for ever.

    A lease that was not renewed while the server was away ends nothing: the lake's own lock is what counts.
    """
    return concurrency(
        limit_of(config),
        timeout_seconds=timeout,
        strict=True,
        lease_duration=LEASE,
        raise_on_lease_renewal_failure=False,
    )


def _bury(names: list[UUID]) -> None:
    """Mark what ran when the server died as crashed. The limit that it held is free when its lease has run out."""
    running = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        lost = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=running)),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=names)),
        )
        for lost_run in lost:
            client.set_flow_run_state(lost_run.id, Crashed(message="the server died while it ran"), force=True)
