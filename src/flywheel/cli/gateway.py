"""Commands for agents in production: the gateway, and what is reported of their sessions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.console import (
    DEFAULT_DATA,
    AsJson,
    ConfigFile,
    DataDir,
    DryRun,
    Sets,
    lake_of,
    load_config,
    open_lake,
    say,
)
from flywheel.trajectory import Split


def gateway(
    config: ConfigFile,
    sets: Sets = None,
    host: Annotated[str, typer.Option(help="Address; another than loopback needs FLYWHEEL_GATEWAY_KEY.")] = "127.0.0.1",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Stand between agents and their model: record every call, and bring sessions that are over into the lake.

    Agents set their base URL to the gateway's. Ctrl-C stops it; what is open then goes on with the next start.
    """
    settings = load_config(config, sets)
    if dry_run:
        say({**settings.gateway.model_dump(mode="json"), "spool": str(settings.data_dir / "gateway")}, as_json)
        return
    from flywheel.gateway.server import serve

    serve(
        settings,
        host=host,
        started=lambda url: print(f"recording {settings.gateway.upstream} at {url}", file=sys.stderr, flush=True),
    )


def report(
    file: Annotated[Path, typer.Argument(help="CSV with the columns session, and success, score, comment or who.")],
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Report how recorded sessions ended, also later and again: the newest outcome is in force."""
    from flywheel.datasets.lake.outcomes import report_file

    say(report_file(open_lake(data_dir), file), as_json)


def agent(
    config: ConfigFile,
    split: Annotated[Split | None, typer.Option(help="Which of the listed tasks; default: all.")] = None,
    start: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    tasks: Annotated[int, typer.Option(min=1, help="How many at most.")] = 1000,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run an agent of your own, [agent] run = "my_agent:run", at listed tasks, every call recorded.

    A task that has an outcome is not run again.
    """
    settings = load_config(config, sets)
    from flywheel.flows.progress import bar
    from flywheel.gateway.agents import agent_tasks, run_agent

    listed = agent_tasks(settings, split, start, tasks)
    if dry_run:
        say({"agent": settings.agent.run, "split": str(split or "all"), "tasks": len(listed)}, as_json)
        return
    with bar(f"agent {settings.agent.run}", len(listed)) as progress:
        say(dict(run_agent(settings, lake_of(settings, create=True), listed, progress)), as_json)
