"""What a person sees at the end of a run, and what `flywheel status` says."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.evaluation.decision import GateDecision
from flywheel.flows.iterations import iterations
from flywheel.flows.report import rate_rows
from flywheel.policies.registry import champion, history
from flywheel.text import plain_console, printable


def print_summary(
    config_file: Path, config: Config, reports: list[dict[str, Any]], overrides: Sequence[str] = ()
) -> None:
    """P(verified) by iteration, the gates, the routes, the files, and what to type next."""
    console = plain_console()
    rows = rate_rows(reports)
    table = Table(*rows[0], title=f"P(verified) on held-out test tasks, seed {config.seed}")
    for row in rows:
        table.add_row(*map(printable, row.values()))
    console.print(table)
    for report in reports:
        for gate in report["gates"]:
            console.print(f"gate {report['iteration']}, {gate['challenger']}: {printable(gate['sentence'])}")
    routes = ", ".join(f"{count} {route}" for route, count in reports[-1]["routes"].items())
    console.print(f"trajectories: {routes}")
    newest = config.data_dir / "reports" / f"iteration-{reports[-1]['iteration']}"
    console.print(f"report: {newest}.html", soft_wrap=True)
    console.print("\nNext, type:")
    query = "select policy, count(*), avg(verified) from trajectories group by all"
    kept = [part for override in overrides if not override.startswith("iterations=") for part in ("--set", override)]
    more = ["run", str(config_file), *kept, "--set", f"iterations={config.iterations + 1}"]
    data = ["--set", f"lake.url={config.lake.url}"] if config.lake.url else ["--data-dir", str(config.data_dir)]
    for command in (["ui", *data], ["sql", query, *data], ["status", *data], more):
        console.print(f"  {shlex.join([_program(), *command])}", soft_wrap=True)


def _program() -> str:
    """How this program was called, as short as one can type it here."""
    called = Path(sys.argv[0]).absolute()
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)


def status_of(lake: Lake) -> dict[str, Any]:
    """The state of a flywheel in a few lines; what runs and is next, where a server serves it."""
    turns = iterations(lake)
    reigns = history(lake)
    counts = lake.sql("select count(*) as episodes, count(*) filter (route is null) as waiting from trajectories")
    gates = lake.sql(
        """select iteration, challenger_id, result from gates where iteration = (select max(iteration) from gates)
           order by promoted desc, challenger_id"""
    ).to_pylist()
    return {
        "snapshot": lake.snapshot(),
        **counts.to_pylist()[0],
        "iterations_finished": [turn.number for turn in turns if turn.finished],
        "iteration_running": next((turn.number for turn in turns if not turn.finished), None),
        "champion": champion(lake),
        "why": reigns[-1].reason if reigns else "no student was promoted yet",
        "last_gates": [_told(gate) for gate in gates],
        "served": _served(lake),
    }


def _told(gate: dict[str, Any]) -> str:
    sentence = GateDecision.from_json(json.loads(gate["result"])).sentence
    return f"iteration {gate['iteration']}, {gate['challenger_id']}: {sentence}"


def _served(lake: Lake) -> dict[str, Any] | None:
    """What the running server knows of the lake's flywheel, or None if none serves it."""
    from flywheel.flows.api import heard

    with heard(lake.root) as somebody:
        if not somebody:
            return None
        from flywheel.flows.control import standing_at

        return standing_at(lake.place)


def history_of(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    """Iterations with their rates and gates, and the champion's changes, oldest first."""
    rows = []
    for iteration in iterations(lake):
        rates = {rate["policy"]: f"{rate['rate']:.1%}" for rate in iteration.report.get("rates", [])}
        rows.append(
            {
                "iteration": iteration.number,
                "finished": iteration.finished,
                "began_under": iteration.champion_id,
                "rates": ", ".join(f"{policy} {rate}" for policy, rate in rates.items()),
                "gates": [f"{gate['challenger']}: {gate['sentence']}" for gate in iteration.report.get("gates", [])],
                "seconds": round(sum(iteration.report.get("seconds", {}).values())),
            }
        )
    changes = [
        {
            "champion": change.policy_id,
            "since": datetime.fromtimestamp(change.created_at, UTC).isoformat(timespec="seconds"),
            "why": change.reason,
        }
        for change in history(lake)
    ]
    return {"iterations": rows, "champion_changes": changes}


def history_lines(changes: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The same to read."""
    lines = []
    for iteration in changes["iterations"]:
        state = f"{iteration['seconds']} s" if iteration["finished"] else "not finished"
        lines.append(f"iteration {iteration['iteration']} ({state}, began under {iteration['began_under']})")
        lines += [f"  {line}" for line in (iteration["rates"], *iteration["gates"]) if line]
    lines += [
        f"champion since {change['since']}: {change['champion']}, {change['why']}"
        for change in changes["champion_changes"]
    ]
    return lines or ["no iteration was begun; start one with: flywheel run CONFIG"]
