"""Running a whole flywheel from Python or the command line."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.config.algorithms import KINDS
from flywheel.config.root import Config
from flywheel.errors import ConfigError, PrerequisiteError
from flywheel.flows.api import heard, quiet, reached_api
from flywheel.flows.doctor import check
from flywheel.flows.server import prefect_api

if TYPE_CHECKING:
    from flywheel.datasets.lake.lake import Lake


def run(config: Config) -> list[dict[str, Any]]:
    """Run every iteration that the config asks for; finished ones are not run again. Their reports, in order."""
    from flywheel.datasets.lake.lake import Lake
    from flywheel.flows.iterations import check_settings, iterations

    finetune = config.train.finetune
    if finetune and set(finetune.kinds) < set(KINDS):
        known = " and ".join(finetune.kinds)
        raise ConfigError(
            f"{finetune.algorithm} finetunes {known} students alone, and a turn distills both kinds; "
            "use: flywheel distill"
        )
    if Lake.exists(config):
        lake = Lake.of(config)
        check_settings(config, lake)
        done = [iteration.report for iteration in iterations(lake) if iteration.finished]
        if len(done) >= config.iterations:
            return done[: config.iterations]
    with prefect_api(config.data_dir, meanwhile=lambda: _prepare(config)):
        from flywheel.flows.server_outage import turn_through_outages

        return [turn_through_outages(config, number) for number in range(1, config.iterations + 1)]


def _prepare(config: Config) -> None:
    """Run the preflight checks, and import what a run needs."""
    check(config)
    importlib.import_module("flywheel.flows.server_outage")


def serve(config: Config, config_file: Path, overrides: list[str]) -> None:
    """Serve the scheduled deployments until it is interrupted."""
    starts_server = not os.environ.get("PREFECT_API_URL")
    with prefect_api(config.data_dir, config.serve.port, lambda: check(config)), metrics(config):
        from flywheel.flows.deployments import serve as serve_deployments

        serve_deployments(config, config_file, overrides, own_server=starts_server)


def foreseen(config: Config) -> dict[str, Any]:
    """What serving would do; nothing is started. Raises `ConfigError` for a schedule that is none."""
    quiet()
    from flywheel.flows.schedules import ticks

    return {
        "deployment": config.name,
        "next ticks": ticks(config),
        "late": config.serve.late,
        "triggers": {name: value for name, value in config.triggers.model_dump().items() if value and name != "kind"},
        "port": config.serve.port,
    }


@contextmanager
def steered(config: Config) -> Iterator[str]:
    """Within the context, Prefect's API is that of the served or deployed flywheel; its name.

    Raises `PrerequisiteError` where no server answers.
    """
    with reached_api(config.data_dir, config.serve.port):
        yield config.name


def curated(config: Config, lake: Lake) -> None:
    """After a curation outside of a turn: tell a running server if there is enough to distill."""
    with heard(config.data_dir) as somebody:
        if somebody:
            from flywheel.flows.triggers import announce_curated

            announce_curated(config, lake)


def deploy(config: Config, pool: str, pool_type: str, image: str = "") -> dict[str, Any]:
    """Put the deployments on a work pool of the Prefect server that PREFECT_API_URL names."""
    if not os.environ.get("PREFECT_API_URL"):
        raise PrerequisiteError("deploy needs a Prefect server that stays: set PREFECT_API_URL (see docs/operating.md)")
    with reached_api(config.data_dir, config.serve.port):
        from flywheel.flows.deployments import deploy as deploy_to

        return deploy_to(config, pool, pool_type, image)


@contextmanager
def metrics(config: Config) -> Iterator[None]:
    """Prometheus metrics beside a served flywheel, if a port is set."""
    if not config.serve.metrics_port:
        yield
        return
    from flywheel.datasets.lake.lake import Lake
    from flywheel.flows.metrics import exposed

    with exposed(Lake.of(config, create=True), config.serve.metrics_port):
        yield
