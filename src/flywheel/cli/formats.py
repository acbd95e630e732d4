"""Commands for what goes in from other tools and out to them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.console import DEFAULT_DATA, AsJson, DataDir, DryRun, open_lake, say
from flywheel.text import printable

RECORD_MIB = 64
"""The longest record that is read by default."""
REASONS = 10
"""Reasons that are printed for what an export leaves out."""
ALL_BAD = 4
"""Exit code of an import that quarantined every record."""


class From(StrEnum):
    """What can be read."""

    ATIF = "atif"
    CHAT = "chat"
    SWE_AGENT = "swe-agent"
    INSPECT = "inspect"
    OTEL = "otel"
    RESPONSES = "responses"
    CLAUDE_CODE = "claude-code"
    OPENHANDS = "openhands"
    HARBOR = "harbor"
    LANGFUSE = "langfuse"
    LANGSMITH = "langsmith"


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


class Personal(StrEnum):
    """Personal data that is replaced where it is asked for."""

    PHONE = "phone number"
    IBAN = "iban"


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
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="What our own records say of themselves holds: policy, iteration, purpose. Lineage keeps who said so.",
        ),
    ] = False,
    redact: Annotated[
        list[Personal] | None, typer.Option(help="Replace these too, besides keys, mail addresses and cards.")
    ] = None,
    max_record: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="The longest record that is read.")
    ] = RECORD_MIB,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Import trajectories; a second time brings nothing new. What a record says of its own provenance is a claim.

    Bad records are quarantined with file, line and reason. Exit code 4: nothing but bad records.
    """
    from flywheel.datasets.formats.importing import find_files, import_files
    from flywheel.flows.progress import bar
    from flywheel.trajectory import Split

    find_files(paths, str(format))  # refuses a path that is not there before a lake is made
    lake = open_lake(data_dir, create=True)
    lake.redact = tuple(map(str, redact or ()))
    with bar(f"import {format}") as progress:
        done = import_files(
            lake,
            paths,
            str(format),
            Split(split),
            progress,
            subject=subject,
            by=split_by.value,
            trust=trust,
            most=max_record << 20,
        )
    counts = {"trajectories": done.trajectories, "known": done.known, "quarantined": done.quarantined}
    say({**counts, "reasons": done.reasons, "unread": dict(done.unread)} if as_json else counts, as_json)
    for reason in done.reasons:
        print(reason, file=sys.stderr)
    if done.quarantined:
        print('all of them: flywheel sql "from quarantined"', file=sys.stderr)
    for what, count in done.unread.most_common():
        print(f"not understood, {count} times: {printable(what)}", file=sys.stderr)
    if done.all_bad:
        raise typer.Exit(ALL_BAD)


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
    from flywheel.datasets.formats.exporting import default_condition, select_ids
    from flywheel.datasets.formats.exporting import export as export_trajectories
    from flywheel.flows.progress import bar

    lake = open_lake(data_dir)
    ids = select_ids(lake, where or default_condition(str(format)))
    if dry_run:
        say({"trajectories": len(ids)}, as_json)
        return
    left_out: dict[str, str] = {}
    with bar(f"export {format}") as progress:
        counts = export_trajectories(lake, folder, str(format), ids, progress, left_out.__setitem__)
    say({**counts, "left_out": left_out} if as_json else counts, as_json)
    for trajectory_id, reason in list(left_out.items())[:REASONS]:
        print(f"left out {trajectory_id}: {printable(reason)}", file=sys.stderr)
    if left_out:
        print(f"{len(left_out)} trajectories do not fit {format} and were left out", file=sys.stderr)
