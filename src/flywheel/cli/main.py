"""The command line: parse, call one library function, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flywheel import __version__
from flywheel.cli.agents import Number, collect, evaluate, serve_policy
from flywheel.cli.beginning import init
from flywheel.cli.console import (
    DEFAULT_DATA,
    AsJson,
    ConfigFile,
    DataDir,
    DryRun,
    Format,
    Kind,
    NonFinite,
    Sets,
    lake_of,
    load_config,
    open_lake,
    say,
)
from flywheel.cli.environments import environment_commands
from flywheel.cli.flows import deploy, doctor, history, metrics, pause, resume, serve, status, top, trigger
from flywheel.cli.formats import export, import_
from flywheel.cli.gateway import agent, gateway, report, route
from flywheel.cli.lake import dataset as dataset_commands
from flywheel.cli.lake import lake as lake_commands
from flywheel.cli.lake import lineage
from flywheel.cli.looking import annotate, compare, show, ui
from flywheel.cli.output import show_table, write_result
from flywheel.cli.students import ablate, credit, merge, push, segment
from flywheel.cli.verifiers import reverify
from flywheel.cli.verifiers import verifiers as verifier_commands
from flywheel.errors import BudgetError, ConfigError, FlywheelError
from flywheel.runtime.subprocesses import stay_safe
from flywheel.text import printable

if TYPE_CHECKING:
    from flywheel.config.root import Config

app = typer.Typer(
    name="flywheel",
    help="A data flywheel for trajectory distillation: collect, verify, store, distill, gate, redeploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
SPENT = 3
"""Exit code of work that stopped because its budget is spent."""


class Log(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"flywheel {__version__}")
        raise typer.Exit


@app.callback()
def root(
    log: Annotated[
        Log | None,
        typer.Option(
            "--log", envvar="FLYWHEEL_LOG", help="Write what happens to stderr: each stage as it ends, warnings."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """A data flywheel for trajectory distillation: collect, verify, store, distill, gate, redeploy."""
    if log:
        from flywheel.flows.logs import log_to_stderr

        log_to_stderr(str(log))


@app.command(epilog="Example: flywheel run configs/quickstart.toml --set iterations=3")
def run(config: ConfigFile, sets: Sets = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Turn the wheel: run every iteration that is not finished yet."""
    settings = load_config(config, sets)
    if dry_run:
        say(_plan(settings), as_json)
        return
    from flywheel.flows.run import run as run_wheel

    reports = run_wheel(settings)
    if as_json:
        say(reports, as_json)
        return
    from flywheel.flows.summary import print_summary

    print_summary(config, settings, reports, sets or [])


@app.command(epilog="Example: flywheel curate configs/quickstart.toml --json")
def curate(config: ConfigFile, sets: Sets = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Segment, verify, compare and route every trajectory that is not routed yet; --dry-run: where, and why."""
    settings = load_config(config, sets)
    lake = lake_of(settings)
    from flywheel.filters.curate import curate as curate_lake
    from flywheel.filters.curate import preview
    from flywheel.filters.waiting import waiting
    from flywheel.flows.progress import bar

    with bar("curate", sum(map(len, waiting(lake, settings)))) as progress:
        report = preview(settings, lake, progress) if dry_run else curate_lake(settings, lake, progress)
    if not dry_run:
        from flywheel.flows.run import curated

        curated(settings, lake)
    if as_json or not isinstance(report, list):
        say(report, as_json)
        return
    show_table(["route", "reason", "trajectories", "example"], [list(row.values()) for row in report])


@app.command(epilog="Example: flywheel distill configs/quickstart.toml --kind flat --where \"split = 'train'\"")
def distill(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file; without one, that of --student.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Which student.")] = Kind.HIERARCHICAL,
    where: Annotated[
        str, typer.Option(help="SQL over the view trajectories: learn from exactly these, from scratch.")
    ] = "",
    dataset: Annotated[str, typer.Option(help="A dataset (name@v3): learn from exactly that, from scratch.")] = "",
    student: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="A config whose [student] and [train] replace CONFIG's.")
    ] = None,
    sets: Sets = None,
    iteration: Number = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Distill a student from the verified trajectories; the same corpus and settings are distilled once."""
    whole = config or student
    if not whole:
        raise ConfigError("distill needs a config: flywheel distill CONFIG, or --student CONFIG")
    settings = load_config(whole, sets)
    if config and student:
        other = load_config(student, [])
        settings = settings.model_copy(update={"student": other.student, "train": other.train})
    lake = lake_of(settings)
    from flywheel.distill.data.corpus import load_corpus
    from flywheel.distill.stage import distill as distill_student
    from flywheel.flows.iterations import current
    from flywheel.flows.progress import training_bar
    from flywheel.runtime.distributed import is_main

    if where and dataset:
        raise ConfigError("--where and --dataset exclude each other; give one of them")
    number = iteration or current(lake)
    if dry_run:
        corpus = load_corpus(settings, lake, number, where, dataset, hierarchical=kind is Kind.HIERARCHICAL)
        say({"trajectories": len(corpus.routes), "snapshot": corpus.snapshot}, as_json)
        return
    with training_bar(f"distill {number}") as progress:
        card = distill_student(settings, lake, str(kind), number, progress, condition=where, dataset=dataset)
    if is_main():
        say({"policy_id": card.policy_id, "parameters": card.parameters, **card.metrics}, as_json)


@app.command(epilog="Example: flywheel promote configs/quickstart.toml hierarchical-1a2b")
def promote(
    config: ConfigFile,
    policy: Annotated[str, typer.Argument(help="The challenger's policy id, or the beginning of it.")],
    sets: Sets = None,
    iteration: Number = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Play a challenger and the champion on held-out tasks; promote it if it wins the paired test.

    Where runs are recorded and nothing can be played, both are held against the dev sessions.
    """
    settings = load_config(config, sets)
    lake = lake_of(settings)
    from flywheel.evaluation.gate import foresight
    from flywheel.evaluation.promotion import episodes_of, gate, opponent_of
    from flywheel.evaluation.replay import verified_sessions
    from flywheel.flows.iterations import current
    from flywheel.flows.progress import bar
    from flywheel.policies.registry import champion, registered
    from flywheel.trajectory import Split

    challenger, opponent = str(registered(lake, policy).policy_id), opponent_of(settings, champion(lake))
    number = iteration or current(lake)
    if dry_run:
        held = (
            len(verified_sessions(settings, lake, Split.DEV)) if settings.is_recorded else settings.evaluate.dev_tasks
        )
        say({"challenger": challenger, "champion": opponent, "tasks": held}, as_json)
        return
    if not settings.is_recorded:
        looks = settings.gate.looks
        print(foresight(settings.evaluate.dev_tasks, settings.gate.alpha, settings.gate.power, looks), file=sys.stderr)
    with bar("gate", episodes_of(settings, 1)) as progress:
        (decision,) = gate(settings, lake, [challenger], opponent, number, progress)
    say(asdict(decision) if as_json else decision.sentence, as_json)


@app.command(epilog="Example: flywheel rollback --data-dir data/quickstart")
def rollback(data_dir: DataDir = DEFAULT_DATA, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Undo the newest promotion: the champion before it is in force again."""
    lake = open_lake(data_dir)
    from flywheel.policies.registry import previous_champion
    from flywheel.policies.registry import rollback as roll_back

    say({"champion": previous_champion(lake) if dry_run else roll_back(lake)}, as_json)


@app.command(
    epilog='Example: flywheel sql "select policy, avg(verified) from trajectories group by all" --at verified@v1'
)
def sql(
    query: Annotated[
        str | None, typer.Argument(help="One reading statement; without one, an interactive shell starts.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA,
    at: Annotated[str | None, typer.Option(help="As of a snapshot (12) or a dataset (name@v3).")] = None,
    format: Annotated[Format, typer.Option("--format", help="Table, or what scripts read.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option(help="Write the result to a new file.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that the query may take.")] = 300.0,
    memory: Annotated[str, typer.Option(help="Memory that it may take, as 4GB or 50%.")] = "80%",
    non_finite: Annotated[NonFinite, typer.Option(help="NaN and infinity in JSON.")] = NonFinite.NULL,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold every file that the query names against its checksum first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Query the lake with DuckDB SQL, once or interactively. It can only read.

    Time and memory bind the whole command, what is printed included.
    """
    from flywheel.datasets.lake.reading import QueryLimits
    from flywheel.datasets.versions.versions import snapshot_of
    from flywheel.runtime.watchdog import resource_limits

    limits = QueryLimits(timeout, memory)
    if query is None:
        from flywheel.cli.shell import run_shell

        lake = open_lake(data_dir, only_one=True)
        snapshot = snapshot_of(lake, at) if at else None
        run_shell(lake, snapshot, limits, lake.root / "sql_history")
        return
    form = Format.JSON if as_json else format
    with resource_limits(timeout, memory):
        lake = open_lake(data_dir, only_one=True)
        snapshot = snapshot_of(lake, at) if at else None
        printed = form not in (Format.PARQUET, Format.ARROW)
        with lake.stream(query, at=snapshot, limits=limits, printed=printed, verify=verify) as result:
            write_result(result, form, output, non_finite_text=non_finite is NonFinite.TEXT)


app.command(epilog="Example: flywheel show 3f2a91c04b --steps 10:20 --data-dir data/quickstart")(show)
app.command(epilog="Example: flywheel compare hierarchical-1a2b flat-3c4d --contexts 3")(compare)
app.command(epilog="Example: flywheel init --door logs --name support --answer chat")(init)
app.command(epilog="Example: flywheel annotate 3f2a91c04b --tag odd --label failed")(annotate)
app.command(epilog="Example: flywheel ui --data-dir data/quickstart --port 8322")(ui)
app.command(epilog="Example: flywheel serve configs/quickstart.toml --set serve.interval=3600")(serve)
app.command(epilog="Example: flywheel deploy configs/quickstart.toml --pool nightly")(deploy)
app.command(epilog="Example: flywheel pause configs/quickstart.toml")(pause)
app.command(epilog="Example: flywheel resume configs/quickstart.toml")(resume)
app.command(epilog="Example: flywheel trigger configs/quickstart.toml distill --dataset verified@v2 --wait")(trigger)
app.command(epilog="Example: flywheel status --data-dir data/quickstart --json")(status)
app.command(epilog="Example: flywheel top --data-dir data/quickstart")(top)
app.command(epilog="Example: flywheel history --data-dir data/quickstart")(history)
app.command(epilog="Example: flywheel metrics --data-dir data/quickstart --port 9464")(metrics)
app.command(epilog="Example: flywheel doctor configs/quickstart.toml")(doctor)
app.command(epilog="Example: flywheel collect configs/quickstart.toml --set collect.episodes=50")(collect)
app.command(epilog="Example: flywheel evaluate configs/quickstart.toml champion --split test")(evaluate)
app.command(epilog="Example: flywheel serve-policy champion --data-dir data/quickstart")(serve_policy)
app.command(epilog="Example: flywheel gateway agent.toml --set gateway.upstream=https://api.openai.com/v1")(gateway)
app.command(epilog="Example: flywheel agent agent.toml --split train --tasks 50")(agent)
app.command(epilog="Example: flywheel route agent.toml --to champion --share 0.1")(route)
app.command(epilog="Example: flywheel report outcomes.csv --data-dir data/agent")(report)
app.command(epilog="Example: flywheel credit gae --where \"split = 'train'\" --arg gamma=0.99")(credit)
app.command(epilog="Example: flywheel ablate configs/quickstart.toml champion --json")(ablate)
app.command(epilog="Example: flywheel merge flat-1a2b flat-3c4d --weight 0.7 --weight 0.3")(merge)
app.command(epilog="Example: flywheel segment changes --where \"split = 'train'\"")(segment)
app.command(epilog="Example: flywheel push hierarchical-1a2b me/my-student")(push)
app.command("import", epilog="Example: flywheel import runs/ --format atif --data-dir data/imported")(import_)
app.command(epilog="Example: flywheel export sft --format sft --where \"split = 'train' and verified = 1\"")(export)
app.command(epilog="Example: flywheel lineage hierarchical-1a2b --json")(lineage)
app.add_typer(dataset_commands, name="dataset")
app.add_typer(lake_commands, name="lake")
app.command(epilog="Example: flywheel reverify configs/quickstart.toml replay --since 12")(reverify)
app.add_typer(verifier_commands, name="verifiers")
app.add_typer(environment_commands, name="env")


def main() -> None:
    """Entry point: what a user can fix is one line on stderr and exit code 2; Ctrl-C is 130."""
    stay_safe()
    try:
        app(standalone_mode=True)
    except FlywheelError as error:
        from flywheel.datasets.lake.redaction import redact

        print(f"flywheel: {printable(redact(str(error), Counter()))}", file=sys.stderr)
        sys.exit(SPENT if isinstance(error, BudgetError) else 2)
    except BrokenPipeError:  # the reader closed the pipe
        _silence_stdout()
        sys.exit(1)
    except OSError as error:
        print(printable(f"flywheel: {error.filename or 'stdout'}: {error.strerror or error}"), file=sys.stderr)
        _silence_stdout()
        sys.exit(2)
    except KeyboardInterrupt:
        print("flywheel: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("flywheel: interrupted; the same command resumes", file=sys.stderr)
        raise


def _silence_stdout() -> None:
    """Have nothing more written to a stdout that takes nothing, not even when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plan(config: Config) -> list[dict[str, Any]]:
    from flywheel.collect.stage import plan

    return [
        {"iteration": number, "collect": [asdict(share) for share in plan(config, number, "champion")]}
        for number in range(1, config.iterations + 1)
    ]
