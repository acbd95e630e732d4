"""Running a whole flywheel from Python or the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flywheel.config import Config
from flywheel.errors import ConfigError
from flywheel.flows.server import prefect_api


def run(config: Config) -> list[dict[str, Any]]:
    """Run every iteration that the config asks for; finished ones are not run again. Their reports, in order."""
    from flywheel.datasets.lake import Lake
    from flywheel.distill.iterations import check_settings, iterations

    refine = config.train.refine
    if refine and refine.objective == "preference":
        raise ConfigError("preference refines flat students, and a turn distills both kinds; use: flywheel distill")
    if Lake.exists(config):
        lake = Lake.of(config)
        check_settings(config, lake)
        done = [one.report for one in iterations(lake) if one.finished]
        if len(done) >= config.iterations:
            return done[: config.iterations]
    with prefect_api(config.data_dir):
        from flywheel.flows.turn import turn

        return [turn(config, number) for number in range(1, config.iterations + 1)]


def serve(config: Config, config_file: Path, overrides: list[str]) -> None:
    """Serve the scheduled deployment until it is interrupted."""
    with prefect_api(config.data_dir, config.serve.port):
        from flywheel.flows.serving import serve as serve_deployment

        serve_deployment(config, config_file, overrides)
