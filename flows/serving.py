"""Scheduled turns: a Prefect deployment that starts the next iteration whenever its cron says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect import serve as prefect_serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flywheel.config import Config, load
from flywheel.datasets.lake import Lake
from flywheel.distill.iterations import iterations
from flywheel.flows.turn import turn


@flow(name="next-turn", persist_result=False)
def next_turn(config_file: str, overrides: list[str]) -> dict[str, Any]:
    """Resume the iteration that a stopped run left, or begin the one after the last finished."""
    config = load(Path(config_file), overrides)
    return turn(config, next_number(config))


def next_number(config: Config) -> int:
    """The first iteration that is not finished."""
    return 1 + sum(one.finished for one in iterations(Lake.of(config, create=True)))


def serve(config: Config, config_file: Path, overrides: list[str]) -> None:
    """Serve the deployment until Ctrl-C. One turn at a time: the next waits for the running one."""
    deployment = RunnerDeployment.from_flow(
        next_turn,
        name=config.name,
        cron=config.serve.cron,
        parameters={"config_file": str(config_file.absolute()), "overrides": overrides},
        concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    prefect_serve(deployment, pause_on_shutdown=True, limit=1, print_starting_message=False)
