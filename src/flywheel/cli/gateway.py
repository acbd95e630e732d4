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
from flywheel.errors import ConfigError
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


def route(
    config: ConfigFile,
    to: Annotated[
        str, typer.Option(help="champion or a policy id: a student answers; upstream: the model answers everything.")
    ] = "",
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Of the sessions, each as a whole.")] = None,
    shadow: Annotated[
        bool | None, typer.Option(help="Ask the student beside the model, compare, and show nobody.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Below this probability of its answer the model answers.")
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Find that probability: answers above it agree so often with dev sessions."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.01, help="Seconds after which the model answers.")] = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Say who answers an agent's calls: its model, or a student for a share of the sessions. Without options, tell.

    A running gateway follows within a second; sessions that have begun may change who answers them.
    """
    from flywheel.cli.agents import replayed_by
    from flywheel.evaluation.replay import threshold
    from flywheel.gateway.routing import ROUTED, UPSTREAM, read_route, write_route
    from flywheel.policies.registry import registered

    settings = load_config(config, sets)
    before = read_route(settings.data_dir)
    if to and to not in (UPSTREAM, ROUTED):
        to = str(registered(lake_of(settings), to).policy_id)
    if agreement is not None:
        if confidence is not None:
            raise ConfigError("--agreement finds the confidence; leave out --confidence")
        replayed = replayed_by(settings, lake_of(settings), to or before.student or ROUTED, Split.DEV)
        confidence = threshold(replayed, agreement)
        kept, same, _ = replayed.by_confidence[confidence]
        say({"answers that the student keeps": kept, "of them the same as on record": same}, as_json=False)
    changes = {
        "student": None if not to else "" if to == UPSTREAM else to,
        "share": share,
        "shadow": shadow,
        "confidence": confidence,
        "timeout": timeout,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    after = before.model_copy(update=given)
    if given and not dry_run:
        write_route(settings.data_dir, after)
    say(after.model_dump(), as_json)


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
