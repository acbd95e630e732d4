"""Commands for verifiers: what they are worth, and what a new one says of old trajectories."""

from __future__ import annotations

from dataclasses import asdict
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
from flywheel.cli.output import show_table
from flywheel.errors import FlywheelError

verifiers = typer.Typer(
    help="Measure verifiers before they gate data.",
    epilog="Example: flywheel verifiers check configs/quickstart.toml",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@verifiers.command(epilog="Example: flywheel verifiers check configs/quickstart.toml --only process")
def check(
    config: ConfigFile,
    only: Annotated[list[str] | None, typer.Option(help="Verifiers by name; default: the pipeline's.")] = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Acceptance test and calibration on labelled episodes and planted hacks. Exit code 2 if a verifier fails it."""
    settings = load_config(config, sets)
    names = only or [verifier.name for verifier in settings.curate.verifiers]
    if dry_run:
        say({"verifiers": names, "tasks": settings.curate.calibration_tasks}, as_json)
        return
    from flywheel.filters.calibration.calibrate import check as check_verifiers
    from flywheel.filters.calibration.calibrate import plot
    from flywheel.flows.progress import bar

    lake = lake_of(settings, create=True)
    with bar("verifiers") as progress:
        calibrations = check_verifiers(settings, lake, only or (), progress)
    picture = lake.root / "reports" / "verifiers.png"
    plot(calibrations, picture)
    if as_json:
        say([asdict(calibration) for calibration in calibrations], as_json)
    else:
        show_table(
            ["verifier", "accepted", "precision", "recall", "kappa", "hacks caught", "honest flagged"],
            [
                [
                    calibration.verifier,
                    "yes" if all(calibration.accepted.values()) else "NO",
                    *asdict(calibration.agreement).values(),
                    calibration.cheats_caught,
                    calibration.honest_flagged,
                ]
                for calibration in calibrations
            ],
        )
        say(f"{calibrations[0].labelled} labelled episodes; reliability plot: {picture}", as_json)
    if failed := [calibration.verifier for calibration in calibrations if not all(calibration.accepted.values())]:
        raise FlywheelError(f"the acceptance test fails for: {', '.join(failed)}; fix it before it gates data")


@verifiers.command(epilog="Example: flywheel verifiers people --data-dir data/agent")
def people(data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Hold the lake's verdicts against the labels that people gave (flywheel annotate, flywheel ui)."""
    from flywheel.filters.calibration.people import agreement_with_people

    agreements = agreement_with_people(open_lake(data_dir, only_one=True))
    if as_json:
        say([asdict(each) for each in agreements], as_json)
        return
    show_table(
        ["verifier", "version", "labelled runs", "precision", "recall", "kappa"],
        [[each.verifier, each.version, each.labelled, *asdict(each.agreement).values()] for each in agreements],
    )


@verifiers.command("list", epilog="Example: flywheel verifiers list")
def list_(as_json: AsJson = False) -> None:
    """The verifiers that a pipeline can name."""
    from flywheel.filters.verifiers.catalog import VERIFIERS

    say(list(VERIFIERS), as_json)


def reverify(
    config: ConfigFile,
    verifier: Annotated[str, typer.Argument(help="A verifier by name, with the arguments that the config gives it.")],
    since: Annotated[int, typer.Option(min=0, help="Only trajectories committed after this snapshot.")] = 0,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Ask a verifier again about stored trajectories: which verdicts change, and what they touch."""
    settings = load_config(config, sets)
    from flywheel.filters.reverify import reverify as verify_again
    from flywheel.flows.progress import bar

    with bar(f"reverify {verifier}") as progress:
        report = verify_again(settings, lake_of(settings), verifier, since, dry_run=dry_run, progress=progress)
    if as_json:
        say(asdict(report), as_json)
        return
    changes = [
        [change.trajectory_id, change.before, change.after, change.reason, change.route] for change in report.changes
    ]
    show_table(["trajectory", "before", "after", "why", "route"], changes)
    say(
        {"judged": report.judged, "changed": len(changes), "datasets": report.datasets, "students": report.students},
        as_json,
    )
