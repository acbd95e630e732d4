"""Commands that let agents act: collecting, evaluating, serving."""

from __future__ import annotations

import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from flywheel.config.root import Config
    from flywheel.datasets.lake.lake import Lake
    from flywheel.evaluation.replay import Replayed
    from flywheel.trajectory import Split

Number = Annotated[int | None, typer.Option("--iteration", min=1, help="Which iteration; default: the one in hand.")]


class HeldOut(StrEnum):
    """Which held-out tasks to play."""

    DEV = "dev"
    TEST = "test"


class Auditors(StrEnum):
    """Who looks at what a policy calls done."""

    CHAT = "chat"
    VALUE = "value"


def collect(
    config: ConfigFile,
    sets: Sets = None,
    iteration: Number = None,
    live: Annotated[bool, typer.Option("--live", help="Show a table of the running episodes.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Collect the training episodes of an iteration; what is in the lake already is not played again."""
    settings = load_config(config, sets)
    from flywheel.collect.stage import collect as collect_episodes
    from flywheel.collect.stage import plan
    from flywheel.flows.iterations import begin, current
    from flywheel.flows.monitor import watched

    if dry_run:
        number = iteration or 1
        say([asdict(share) for share in plan(settings, number, "champion" if number > 1 else "random")], as_json)
        return
    lake = lake_of(settings, create=True)
    turn = begin(settings, lake, iteration or current(lake))
    total = sum(share.count for share in plan(settings, turn.number, turn.champion_id))
    with watched(f"collect {turn.number}", total, table=live) as (progress, hooks):
        counts = collect_episodes(settings, lake, turn.number, turn.champion_id, progress, hooks)
    say(counts, as_json)


def evaluate(
    config: ConfigFile,
    policy: Annotated[
        str, typer.Argument(help="expert, noisy_expert, chat, champion, …, or a policy id.")
    ] = "champion",
    split: Annotated[HeldOut, typer.Option(help="Which held-out tasks.")] = HeldOut.TEST,
    auditor: Annotated[Auditors | None, typer.Option(help="Who looks at what the policy calls done.")] = None,
    best_of: Annotated[int, typer.Option(min=0, help="Attempts at each task, of which one is chosen.")] = 0,
    by: Annotated[str, typer.Option(help="Who chooses: value, or a verifier by name.")] = "value",
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the attempts.")] = 0.5,
    max_steps: Annotated[int, typer.Option(min=0, help="Another budget of steps.")] = 0,
    replay: Annotated[
        bool, typer.Option("--replay", help="Ask at every answer of recorded sessions; nothing is played.")
    ] = False,
    sets: Sets = None,
    iteration: Number = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Play held-out tasks with a policy, verify the episodes, and tell P(verified) with its interval.

    --auditor, --best-of and --max-steps measure test-time scaling: gain and cost against the plain evaluation. --replay
    tells how a student would have answered held-out sessions of an agent in production.
    """
    settings = load_config(config, sets)
    if sum(map(bool, (auditor, best_of, max_steps, replay))) > 1:
        raise ConfigError("--auditor, --best-of, --max-steps and --replay are measured one at a time; give one of them")
    lake = lake_of(settings)
    from flywheel.evaluation import test_time
    from flywheel.evaluation.evaluate import evaluate as evaluate_policy
    from flywheel.flows.iterations import current
    from flywheel.flows.progress import bar
    from flywheel.trajectory import Split

    number, on = iteration or current(lake), Split(split)
    tasks = settings.evaluate.test_tasks if split is HeldOut.TEST else settings.evaluate.dev_tasks
    if dry_run:
        say({"policy": policy, "split": str(split), "tasks": tasks, "iteration": number}, as_json)
        return
    if replay:
        _replay(settings, lake, policy, on, as_json)
        return
    with bar(f"evaluate {policy}", None if auditor or best_of or max_steps else tasks) as progress:
        if auditor:
            gain = test_time.audited(settings, lake, policy, on, number, str(auditor), progress)
        elif best_of:
            gain = test_time.best_of(settings, lake, policy, on, number, best_of, by, temperature, progress)
        elif max_steps:
            gain = test_time.longer(settings, lake, policy, on, number, max_steps, progress)
        else:
            say(asdict(evaluate_policy(settings, lake, policy, on, number, progress)), as_json)
            return
    if as_json:
        say(gain.to_dict(), as_json)
        return
    rates = {"plain": gain.plain, gain.what: gain.scaled, "gain": gain.gain}
    show_table(["", "P(verified)", "low", "high"], [[name, *asdict(rate).values()] for name, rate in rates.items()])
    costs = {"plain": gain.plain_cost, gain.what: gain.scaled_cost}
    show_table(
        ["per task", "steps", "tokens", "seconds", "money"], [[k, *asdict(c).values()] for k, c in costs.items()]
    )
    say({"tasks": gain.tasks, "cost ratio": round(gain.cost_ratio, 3), **gain.notes}, as_json)


def replayed_by(settings: Config, lake: Lake, policy: str, split: Split) -> Replayed:
    """How a student, by its id or as the champion, would have answered held-out sessions."""
    from flywheel.evaluation.replay import replay
    from flywheel.flows.progress import bar
    from flywheel.policies.registry import champion, policy_directory, registered
    from flywheel.policies.students import load_policy

    row = registered(lake, champion(lake) if policy == "champion" else policy)
    student = load_policy(policy_directory(lake, str(row.policy_id)))
    with bar(f"replay {policy}") as progress:
        return replay(settings, lake, student, split, progress)


def _replay(settings: Config, lake: Lake, policy: str, split: Split, as_json: bool) -> None:
    replayed = replayed_by(settings, lake, policy, split)
    if as_json:
        say(asdict(replayed), as_json)
        return
    shares = {"same": replayed.same, "same tools": replayed.same_tools}
    show_table(["", "share", "low", "high"], [[name, *asdict(share).values()] for name, share in shares.items()])
    show_table(["tool", "answers", "same"], [[tool or "says", *each] for tool, each in replayed.by_tool.items()])
    show_table(
        ["confidence from", "answers kept", "same", "low"],
        [[least, *each] for least, each in replayed.by_confidence.items()],
    )
    show_table(["played against the record", "sessions"], list(map(list, replayed.endings.items())))
    rest = {
        "sessions": replayed.sessions,
        "of unknown end, left out": replayed.unknown,
        "whole": replayed.whole_sessions,
    }
    say({**rest, "first divergence (median answer)": replayed.diverges_at}, as_json)


def serve_policy(
    policy: Annotated[str, typer.Argument(help="champion, or a policy id (or the beginning of one).")] = "champion",
    host: Annotated[str, typer.Option(help="Address; another than loopback needs FLYWHEEL_SERVE_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8321,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    canary: Annotated[str, typer.Option(help="A challenger's policy id.")] = "",
    canary_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the episodes that it answers.")] = 0.1,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="The largest body of a request.")] = 8,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests of one client at once.")] = 256,
    data_dir: DataDir = DEFAULT_DATA,
) -> None:
    """Serve a student over an OpenAI-compatible API; `champion` follows promotions and rollbacks. Ctrl-C stops it."""
    from flywheel.runtime.devices import pick_device
    from flywheel.serving.bounds import Bounds
    from flywheel.serving.roster import Canary
    from flywheel.serving.server import serve

    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"there is no device '{device}'; use auto, cpu, cuda or mps")
    serve(
        open_lake(data_dir),
        policy,
        host=host,
        port=port,
        device=pick_device(device),
        canary=Canary(canary, canary_share) if canary else None,
        bounds=Bounds(max_body_bytes=max_body << 20, max_requests_per_client=max_requests),
        started=lambda url, student: print(f"serving {student} at {url}", file=sys.stderr, flush=True),
    )
