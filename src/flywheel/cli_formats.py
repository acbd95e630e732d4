"""Commands for what goes in from other tools and out to them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flywheel.console import DEFAULT_DATA, AsJson, DataDir, DryRun, open_lake, say


class From(StrEnum):
    """What can be read."""

    ATIF = "atif"
    CHAT = "chat"
    SWE_AGENT = "swe-agent"
    INSPECT = "inspect"
    OTEL = "otel"


class To(StrEnum):
    """What can be written."""

    ATIF = "atif"
    CHAT = "chat"
    SWE_AGENT = "swe-agent"
    INSPECT = "inspect"
    OTEL = "otel"
    SFT = "sft"
    SHAREGPT = "sharegpt"
    DPO = "dpo"
    PARQUET = "parquet"


class Fold(StrEnum):
    """Which side of the wall imported tasks lie on."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


class Whole(StrEnum):
    """What belongs to one split as a whole."""

    TASK = "task"
    TEMPLATE = "template"
    ENVIRONMENT = "environment"


def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders of them.")],
    format: Annotated[From, typer.Option("--format", help="How they are written.")],
    split: Annotated[Fold, typer.Option(help="Where their tasks belong, for ever.")] = Fold.TRAIN,
    split_by: Annotated[
        Whole, typer.Option(help="What else belongs there: all tasks of their templates, or of their environments.")
    ] = Whole.TASK,
    subject: Annotated[
        str | None, typer.Option(help="Whose data it is (a pseudonym); flywheel lake purge --subject deletes it.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Import trajectories; a second time brings nothing new. Bad records are quarantined with file, line and reason."""
    from dataclasses import asdict

    from flywheel.datasets.imports import find_files, import_files
    from flywheel.flows.progress import bar
    from flywheel.trajectory import Split

    files = find_files(paths, str(format))
    lake = open_lake(data_dir, create=True)
    with bar(f"import {format}") as progress:
        done = import_files(lake, files, str(format), Split(split), progress, subject=subject, by=split_by.value)
    found = asdict(done)
    reasons = found.pop("reasons")
    say({**found, "reasons": reasons} if as_json else found, as_json)
    for reason in reasons:
        print(reason, file=sys.stderr)
    if done.quarantined:
        print('all of them: flywheel sql "from quarantined"', file=sys.stderr)


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    format: Annotated[To, typer.Option("--format", help="What to write.")],
    where: Annotated[
        str | None,
        typer.Option(help="SQL over the view trajectories; default: all, or for tuning rows the verified ones."),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write trajectories for other tools: whole runs, or rows for supervised and preference tuning."""
    from flywheel.datasets.exports import default_condition, select_ids
    from flywheel.datasets.exports import export as export_trajectories
    from flywheel.flows.progress import bar

    lake = open_lake(data_dir)
    ids = select_ids(lake, where or default_condition(str(format)))
    if dry_run:
        say({"trajectories": len(ids)}, as_json)
        return
    with bar(f"export {format}") as progress:
        say(export_trajectories(lake, folder, str(format), ids, progress), as_json)
