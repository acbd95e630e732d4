"""Commands for the lake: datasets, lineage, upkeep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.console import DEFAULT_DATA, AsJson, DataDir, DryRun, open_lake, say
from flywheel.cli.output import show_table
from flywheel.config.defaults import LEAK
from flywheel.errors import LakeError

dataset = typer.Typer(
    help="Named, versioned datasets over the lake.",
    epilog="Example: flywheel dataset create verified --where 'verified = 1'",
    no_args_is_help=True,
    rich_markup_mode=None,
)
lake = typer.Typer(
    help="Check and keep the lake.",
    epilog="Example: flywheel lake check",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Title = Annotated[str, typer.Argument(help="name@v2, or a name for its newest version.")]
Ids = Annotated[list[str], typer.Argument(help="Whole trajectory ids.")]
Place = Annotated[str, typer.Argument(metavar="DIR|URL", help="A folder, or the URL of a lake.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the catalog from then on.")]


@dataset.command(epilog="Example: flywheel dataset create verified --where \"verified = 1 and split = 'train'\"")
def create(
    name: Annotated[str, typer.Argument(help="a-z, 0-9, - and _.")],
    where: Annotated[str, typer.Option(help="SQL over the view trajectories.")] = "true",
    sample: Annotated[int, typer.Option(min=0, help="Draw so many of them; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draw and of the order.")] = 0,
    leak: Annotated[
        float,
        typer.Option(min=0, max=1, help="Likeness to a held-out task from which nothing is built; 1 allows most."),
    ] = LEAK,
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Record what a condition selects now as a new version; the same again is the version that exists."""
    opened = open_lake(data_dir)
    if dry_run:
        count = opened.sql(f"select count(*) as n from trajectories where ({where}\n)").to_pylist()[0]["n"]
        say({"trajectories": min(count, sample or count)}, as_json)
        return
    from flywheel.datasets.versions.versions import create as create_version
    from flywheel.flows.events import tell_of_dataset

    dataset = create_version(opened, name, where, sample=sample, seed=seed, leak=leak)
    tell_of_dataset(opened, dataset)
    say(
        {
            "dataset": dataset.title,
            "snapshot": dataset.snapshot,
            "trajectories": dataset.trajectories,
            "digest": dataset.digest,
        },
        as_json,
    )


@dataset.command("list", epilog="Example: flywheel dataset list --json")
def list_versions(data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Every version of every dataset."""
    rows = open_lake(data_dir).sql(
        """select name || '@v' || version as dataset, snapshot, trajectories, steps, condition, sample, flag
           from dataset_versions order by name, version"""
    )
    if as_json:
        say(rows.to_pylist(), as_json)
    else:
        show_table(rows.column_names, [list(row.values()) for row in rows.to_pylist()])


@dataset.command(epilog="Example: flywheel dataset card verified@v1")
def card(title: Title, data_dir: DataDir = DEFAULT_DATA) -> None:
    """What a dataset holds: sources, splits, horizon, known biases."""
    from flywheel.datasets.versions.versions import find

    print(find(open_lake(data_dir), title).card)


@dataset.command(epilog="Example: flywheel dataset diff verified@v1 verified@v2")
def diff(
    one: Title,
    other: Title,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Trajectories that only the first or only the second version holds."""
    from flywheel.datasets.versions.versions import difference, find

    opened = open_lake(data_dir)
    changes = difference(opened, find(opened, one), find(opened, other))
    say(changes if as_json else {name: len(ids) for name, ids in changes.items()}, as_json)


@dataset.command(epilog="Example: flywheel dataset write verified@v1 exports/verified")
def write(
    title: Title,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Write a dataset as Parquet shards with its card: the same bytes each time, ready for `load_dataset`."""
    from flywheel.datasets.versions.parquet_export import write_shards
    from flywheel.datasets.versions.versions import find
    from flywheel.flows.progress import bar

    opened = open_lake(data_dir)
    with bar(f"write {title}") as progress:
        paths = write_shards(opened, find(opened, title), folder, progress=progress)
    say([str(path) for path in paths], as_json)


@lake.command(epilog="Example: flywheel lake check --json")
def check(data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Hold every file against the catalog: presence, checksum, counts, places. Exit code 2 if something is wrong."""
    from flywheel.datasets.maintenance.check import check as check_lake
    from flywheel.flows.progress import bar

    with bar("check") as progress:
        problems = check_lake(open_lake(data_dir), progress)
    say([f"{problem.path} {problem.reason}" for problem in problems] or "the lake is what its catalog says", as_json)
    if problems:
        raise typer.Exit(2)


@lake.command(epilog="Example: flywheel lake repair --dry-run")
def repair(data_dir: DataDir = DEFAULT_DATA, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Set broken and unlisted files aside under quarantine/; the trajectories in them can be collected again."""
    from flywheel.datasets.maintenance.check import check as check_lake
    from flywheel.datasets.maintenance.check import repair as repair_lake

    opened = open_lake(data_dir)
    problems = check_lake(opened)
    say([problem.path for problem in problems] if dry_run else repair_lake(opened, problems), as_json)


@lake.command(epilog="Example: flywheel lake compact")
def compact(data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Merge small files. Snapshots and datasets go on reading what they read."""
    from flywheel.datasets.maintenance.compaction import compact as compact_lake

    say({"merged segments": compact_lake(open_lake(data_dir))}, as_json)


@lake.command(epilog="Example: flywheel lake gc --keep 20")
def gc(
    keep: Annotated[int, typer.Option(min=0, help="Newest snapshots that stay readable, beside every dataset.")] = 100,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that an unused file stays.")] = 3600.0,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Delete files that neither a dataset nor a recent snapshot reads."""
    from flywheel.datasets.maintenance.compaction import collect_garbage

    say({"deleted files": collect_garbage(open_lake(data_dir), keep_snapshots=keep, grace=grace)}, as_json)


@lake.command(epilog="Example: flywheel lake retire \"route = 'continual' and iteration < 5\" --dry-run")
def retire(
    where: Annotated[str, typer.Argument(help="SQL over the view trajectories.")],
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let trajectories that taught nobody leave the newest snapshot; datasets that hold them go on reading them."""
    from flywheel.datasets.maintenance.retention import due
    from flywheel.datasets.maintenance.retention import retire as retire_trajectories

    opened = open_lake(data_dir)
    say({"retired": len(due(opened, where)) if dry_run else retire_trajectories(opened, where)}, as_json)


@lake.command(epilog="Example: flywheel lake backup /mnt/backup/quickstart")
def backup(place: Place, data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Copy the lake to a folder or URL; the next backup to the same place copies only what is new."""
    from flywheel.datasets.maintenance.backup import copy
    from flywheel.flows.progress import bar

    with bar("backup") as progress:
        say({"copied files": copy(open_lake(data_dir), open_lake(place, create=True), progress)}, as_json)


@lake.command(epilog="Example: flywheel lake restore /mnt/backup/quickstart --data-dir data/again")
def restore(place: Place, data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Copy a backup into an empty lake."""
    from flywheel.datasets.maintenance.backup import copy
    from flywheel.flows.progress import bar

    copied, into = open_lake(place), open_lake(data_dir, create=True)
    if into.snapshot():
        raise LakeError(f"{into.name} is not empty; restore into a new place")
    with bar("restore") as progress:
        say({"copied files": copy(copied, into, progress)}, as_json)


@lake.command(epilog="Example: flywheel lake views lake.duckdb; then: duckdb lake.duckdb")
def views(
    file: Annotated[Path, typer.Argument(help="A new .duckdb file, or one that this command wrote.")],
    at: Annotated[str | None, typer.Option(help="As of a snapshot (12) or a dataset (name@v3).")] = None,
    data_dir: DataDir = DEFAULT_DATA,
) -> None:
    """Write a DuckDB file with the views over one snapshot, for DuckDB's own shell and for BI tools."""
    from flywheel.datasets.lake.reading import write_views
    from flywheel.datasets.versions.versions import snapshot_of

    opened = open_lake(data_dir)
    files, tables = opened.contents(snapshot_of(opened, at) if at else None)
    write_views(file, files, tables, opened.storage)


@lake.command(epilog="Example: flywheel lake ducklake lake.ducklake; then: attach 'ducklake:lake.ducklake' (read_only)")
def ducklake(
    file: Annotated[Path, typer.Argument(help="A new file.")],
    at: Annotated[str | None, typer.Option(help="As of a snapshot (12) or a dataset (name@v3).")] = None,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Write a DuckLake catalog over the lake's own Parquet files; nothing is copied."""
    from flywheel.datasets.versions.versions import snapshot_of
    from flywheel.integrations.ducklake import write_ducklake

    opened = open_lake(data_dir)
    say({"files": write_ducklake(opened, file, snapshot_of(opened, at) if at else None)}, as_json)


@lake.command(epilog="Example: flywheel lake revoke 3f2a91c04b… --reason 'licence withdrawn'")
def revoke(ids: Ids, reason: Reason, data_dir: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Take trajectories back: they teach nobody from now on, and what they touched is marked."""
    from flywheel.datasets.maintenance.lineage import revoke as revoke_trajectories

    say(revoke_trajectories(open_lake(data_dir), ids, reason), as_json)


@lake.command(epilog="Example: flywheel lake purge --subject user-17 --reason 'asked for it' --dry-run")
def purge(
    reason: Reason,
    ids: Annotated[list[str] | None, typer.Argument(help="Whole trajectory ids.")] = None,
    subject: Annotated[str | None, typer.Option(help="All that is this person's data.")] = None,
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove trajectories from every file, history included. This cannot be undone."""
    from flywheel.datasets.maintenance.retention import of_subject
    from flywheel.datasets.maintenance.retention import purge as purge_trajectories

    opened = open_lake(data_dir)
    wanted = [*(ids or []), *(of_subject(opened, subject) if subject else [])]
    if not wanted:
        raise LakeError("nothing to purge: name trajectory ids, or a --subject that the lake knows")
    say({"purged": len(opened.known_ids(wanted)) if dry_run else purge_trajectories(opened, wanted, reason)}, as_json)


def lineage(
    what: Annotated[str, typer.Argument(help="A student or a trajectory: its id, or the beginning of it.")],
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """What stands behind a student, or what a trajectory has touched."""
    from flywheel.datasets.maintenance.lineage import behind, resolve, touched

    opened = open_lake(data_dir, only_one=True)
    kind, entry = resolve(opened, what)
    say(behind(opened, entry) if kind == "student" else touched(opened, entry), as_json)
