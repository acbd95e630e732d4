"""Commands around students: subgoals and credit for their data, which level fails, merging."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

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
from flywheel.errors import ConfigError

Arguments = Annotated[
    list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="An argument of the method, e.g. gamma=0.99.")
]


def credit(
    method: Annotated[str, typer.Argument(help="returns, gae, hae, gigpo or progress; see docs/distillation.md.")],
    where: Annotated[str, typer.Option(help="SQL over the view trajectories.")] = "route is not null",
    arg: Arguments = None,
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Say what each decision was worth, level by level, and append it to the view credits."""
    from flywheel.distill.credit.methods import make_method
    from flywheel.distill.credit.record import assign_credit
    from flywheel.flows.progress import bar

    made = make_method(method, dict(map(_argument, arg or [])))
    with bar(f"credit {method}") as progress:
        done = assign_credit(open_lake(data_dir), method, made, where, dry_run=dry_run, progress=progress)
    if as_json:
        say(asdict(done), as_json)
        return
    diagnostics = done.diagnostics
    say(
        {"trajectories": done.trajectories, "new": done.new, "steps": diagnostics.steps, "tasks": diagnostics.tasks},
        as_json,
    )
    say(
        {"tasks with one return": diagnostics.silent_groups, "steps in shared states": diagnostics.shared_states},
        as_json,
    )
    show_table(
        ["share of credit by tenth of the episode", *map(str, range(1, 11))],
        [[level, *shares] for level, shares in diagnostics.deciles.items()],
    )


class Cutter(StrEnum):
    """What cuts episodes into subgoals."""

    MILESTONES = "milestones"
    LIVED = "lived"
    CHANGES = "changes"
    TOOLS = "tools"
    CHAT = "chat"


def segment(
    source: Annotated[
        Cutter,
        typer.Argument(help="Gains in progress, the plan in force, changes, an agent's tools, or a chat model."),
    ],
    where: Annotated[str, typer.Option(help="SQL over the view trajectories.")] = "split = 'train'",
    base_url: Annotated[str, typer.Option(help="Of the chat model's server.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(help="Name of the chat model; its key: FLYWHEEL_LABELLER_KEY.")] = "",
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Cut finished episodes into subgoals, and tell how far the sources of the lake agree."""
    from flywheel.distill.subgoals.labelling import labeller, source_of
    from flywheel.distill.subgoals.segmentation import SOURCES, accords, segment_lake
    from flywheel.flows.progress import bar

    lake, rejected = open_lake(data_dir), list[str]()
    if source is Cutter.CHAT:
        if not model:
            raise ConfigError("chat needs --model, the name under which the server knows it")
        name, segmenter = source_of(model), labeller(base_url, model, rejected)
    else:
        name, segmenter = SOURCES[source]
    with bar(f"segment {source}") as progress:
        counts = segment_lake(lake, name, segmenter, where, progress, dry_run=dry_run)
    agreement = [asdict(accord) for accord in accords(lake, where)]
    if as_json:
        say({**counts, "source": name, "rejected": rejected, "agreement": agreement}, as_json)
        return
    say({**counts, "source": name, "rejected answers": len(rejected)}, as_json)
    show_table(
        ["source", "and", "trajectories", "boundaries (F1)", "overlap"], [list(accord.values()) for accord in agreement]
    )


def ablate(
    config: ConfigFile,
    policy: Annotated[str, typer.Argument(help="A hierarchical student: champion, or a policy id.")] = "champion",
    iteration: Annotated[int, typer.Option(min=1, help="Whose dev tasks.")] = 1,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Which level fails: the student with an oracle for a planner, and with an oracle for an executor."""
    settings = load_config(config, sets)
    if dry_run:
        say({"policy": policy, "tasks": settings.evaluate.dev_tasks}, as_json)
        return
    from flywheel.evaluation.oracle_ablation import ablate as ablate_levels
    from flywheel.flows.progress import bar

    with bar(f"ablate {policy}") as progress:
        ablation = ablate_levels(settings, lake_of(settings), policy, iteration, progress)
    if as_json:
        say({**asdict(ablation), "weaker": ablation.weaker}, as_json)
        return
    rows = {
        "the student": ablation.student,
        "oracle planner, its executor": ablation.oracle_planner,
        "its planner, oracle executor": ablation.oracle_executor,
    }
    show_table(
        ["who acts", "P(success)", "low", "high"], [[name, *asdict(rate).values()] for name, rate in rows.items()]
    )
    say(f"{ablation.tasks} tasks that the expert solves; replacing this level helps most: {ablation.weaker}", as_json)


def merge(
    policies: Annotated[list[str], typer.Argument(help="Students that one ancestor was trained into.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each, in order; they sum to 1. Default: equal.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Interpolate specialists of one ancestor into a new student, to be evaluated like any other."""
    from flywheel.policies.merge import merge as merge_students

    card = merge_students(open_lake(data_dir), policies, weight or ())
    say({"policy_id": card.policy_id, "ancestor": card.parent_policy_id, "merged": card.condition}, as_json)


def push(
    policy: Annotated[str, typer.Argument(help="A policy id, or the beginning of it.")],
    repository: Annotated[str, typer.Argument(help="Where to, as me/my-student.")],
    endpoint: Annotated[str | None, typer.Option(help="Another hub; default: HF_ENDPOINT, or the public one.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For everyone to see.")] = False,
    data_dir: DataDir = DEFAULT_DATA,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Publish a student on a Hugging Face hub; private unless --public."""
    from flywheel.integrations.hub import push as push_student
    from flywheel.policies.registry import registered

    lake = open_lake(data_dir)
    if dry_run:
        say({"policy_id": registered(lake, policy).policy_id, "repository": repository, "public": public}, as_json)
        return
    say({"commit": push_student(lake, policy, repository, endpoint=endpoint, private=not public)}, as_json)


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"--arg takes key=value, as in --arg gamma=0.99; got '{text}'")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
