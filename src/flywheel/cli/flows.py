"""Commands that keep a flywheel turning: schedules, triggers, and looking at what it does."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from flywheel.cli.console import (
    DEFAULT_DATA,
    AsJson,
    ConfigFile,
    DataDir,
    DryRun,
    Kind,
    Sets,
    load_config,
    open_lake,
    say,
)
from flywheel.cli.output import show_table
from flywheel.errors import ConfigError
from flywheel.text import plain_console


class Pool(StrEnum):
    """Where a work pool starts runs."""

    PROCESS = "process"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


class What(StrEnum):
    """What to start."""

    TURN = "turn"
    DISTILL = "distill"


def serve(config: ConfigFile, sets: Sets = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Serve a flywheel: a turn at every tick of its schedule, distillations when its triggers say so. Ctrl-C stops it.

    The schedule is serve.cron, serve.interval or serve.rrule. Other terminals steer it: pause, resume, trigger, status.
    """
    settings = load_config(config, sets)
    if dry_run:
        from flywheel.flows.run import foreseen

        say(foreseen(settings), as_json)
        return
    from flywheel.flows.run import serve as serve_wheel

    serve_wheel(settings, config, sets or [])


def deploy(
    config: ConfigFile,
    pool: Annotated[str, typer.Option(help="A work pool; made if there is none of this name.")],
    type: Annotated[Pool, typer.Option("--type", help="Its type.")] = Pool.PROCESS,
    image: Annotated[str, typer.Option(help="Of docker and kubernetes: an image that has Flywheel.")] = "",
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Put the flywheel's deployments and automations on a Prefect server's work pool (PREFECT_API_URL)."""
    if type is not Pool.PROCESS and not image:
        raise ConfigError(f"a {type} pool needs an image that has Flywheel: --image NAME")
    settings = load_config(config, sets)
    if dry_run:
        from flywheel.flows.run import foreseen

        say({**foreseen(settings), "pool": pool, "type": str(type)}, as_json)
        return
    from flywheel.flows.run import deploy as deploy_wheel

    say(deploy_wheel(settings, pool, str(type), image), as_json)


def pause(config: ConfigFile, sets: Sets = None, as_json: AsJson = False) -> None:
    """Pause the schedule of a served or deployed flywheel; what runs goes on."""
    from flywheel.flows.run import steered

    with steered(load_config(config, sets)) as name:
        from flywheel.flows.control import pause as pause_schedule

        say(pause_schedule(name), as_json)


def resume(config: ConfigFile, sets: Sets = None, as_json: AsJson = False) -> None:
    """Resume the schedule of a served or deployed flywheel."""
    from flywheel.flows.run import steered

    with steered(load_config(config, sets)) as name:
        from flywheel.flows.control import resume as resume_schedule

        say(resume_schedule(name), as_json)


def trigger(
    config: ConfigFile,
    what: Annotated[What, typer.Argument(help="The next turn, or a distillation.")] = What.TURN,
    where: Annotated[str, typer.Option(help="Distill what this condition over trajectories selects.")] = "",
    dataset: Annotated[str, typer.Option(help="Distill a dataset, as verified@v3.")] = "",
    kind: Annotated[Kind | None, typer.Option(help="Which student; default: triggers.kind.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it ends; exit code 2 if it fails.")] = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Start a turn or a distillation of a served or deployed flywheel now; --set adds overrides to this run."""
    options = {"where": where, "dataset": dataset, "kind": str(kind or "")}
    if what is What.TURN and any(options.values()):
        raise ConfigError("--where, --dataset and --kind are of distillations: flywheel trigger CONFIG distill …")
    if where and dataset:
        raise ConfigError("--where and --dataset exclude each other; give one of them")
    from flywheel.flows.run import steered

    with steered(load_config(config, sets)) as name:
        from flywheel.flows.control import DISTILL, TURN
        from flywheel.flows.control import trigger as start

        flow = DISTILL if what is What.DISTILL else TURN
        given = {key: value for key, value in options.items() if value}
        say(start(name, flow, sets or [], given, wait=wait), as_json)


def status(data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """What runs and what is next, which iterations are done, who is champion, what the last gate said and why."""
    from flywheel.flows.summary import status_of

    say(status_of(open_lake(data_dir, only_one=True)), as_json)


def history(data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Every iteration with its gate, and every change of the champion."""
    from flywheel.flows.summary import history_lines, history_of

    changes = history_of(open_lake(data_dir, only_one=True))
    say(changes if as_json else history_lines(changes), as_json)


def metrics(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9464,
    data_dir: DataDir = DEFAULT_DATA,
) -> None:
    """Answer Prometheus on the loopback interface with what the lake holds, until Ctrl-C."""
    import sys
    import threading

    from flywheel.flows.metrics import exposed

    with exposed(open_lake(data_dir), port) as taken:
        print(f"metrics at http://127.0.0.1:{taken}/metrics", file=sys.stderr, flush=True)
        threading.Event().wait()


def top(
    data_dir: DataDir = DEFAULT_DATA,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Watch a flywheel turn: runs by policy, how many a minute, what waits. Once, where the output is no terminal."""
    from rich.live import Live

    from flywheel.flows.top import board, what_happens

    lake, console = open_lake(data_dir, only_one=True), plain_console()
    if as_json:
        say(what_happens(lake), as_json)
    elif not console.is_terminal:
        console.print(board(what_happens(lake)))
    else:
        with Live(board(what_happens(lake)), console=console) as live:
            while True:
                time.sleep(every)
                live.update(board(what_happens(lake)))


def doctor(config: ConfigFile, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check everything that a run needs before it starts. Exit code 2 if something is missing."""
    from dataclasses import asdict

    from flywheel.flows.doctor import diagnose

    findings = diagnose(load_config(config, sets))
    if as_json:
        say([asdict(finding) for finding in findings], as_json)
    else:
        show_table(
            ["check", "ok", "detail"],
            [[finding.check, "yes" if finding.ok else "NO", finding.detail] for finding in findings],
        )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)
