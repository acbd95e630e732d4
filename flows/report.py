"""The report of an iteration: JSON for scripts, Markdown to read, and a plot of P(verified) over iterations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flywheel.charts import rates_by_iteration, write_png
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.evaluation.decision import GateDecision
from flywheel.filters.curate import route_counts, route_reasons
from flywheel.flows.iterations import iterations
from flywheel.text import markdown
from flywheel.ui.report import report_page

if TYPE_CHECKING:
    from flywheel.evaluation.evaluate import Rate

SUFFIXES = ("html", "md", "png", "json")


def write_report(
    config: Config,
    lake: Lake,
    number: int,
    rates: Sequence[Rate],
    decisions: Mapping[str, GateDecision],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write `reports/iteration-N.{json,md,html,png}` in the data directory and return the report as plain data."""
    report: dict[str, Any] = {
        "name": config.name,
        "data_dir": str(config.data_dir),
        "seed": config.seed,
        "iteration": number,
        "rates": [{**asdict(rate), **expense} for rate, expense in zip(rates, _expenses(lake, rates), strict=True)],
        "gates": [
            {"challenger": name, **asdict(decision), "sentence": decision.sentence}
            for name, decision in decisions.items()
        ],
        "seconds": dict(seconds),
        "routes": route_counts(lake),
        "reasons": route_reasons(lake),
        "decoding": (
            f"students choose among the environment's valid actions, greedily; an action is offered at most "
            f"{config.student.max_repeats} times from one state, and not again where it changed nothing; "
            f"the same holds for flat and hierarchical students"
        ),
    }
    directory = lake.root / "reports"
    directory.mkdir(exist_ok=True)
    history = [
        iteration.report for iteration in iterations(lake) if iteration.finished and iteration.number < number
    ] + [report]
    stem = directory / f"iteration-{number}"
    write_png(rates_by_iteration(rate_points(history)), stem.with_suffix(".png"))
    stem.with_suffix(".md").write_text(as_markdown(history, stem.with_suffix(".png").name))
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2))
    stem.with_suffix(".html").write_text(report_page(lake, number, report))
    return {**report, "files": {suffix: str(stem.with_suffix(f".{suffix}")) for suffix in SUFFIXES}}


def _expenses(lake: Lake, rates: Sequence[Rate]) -> list[dict[str, float | None]]:
    """Mean tokens and money of an evaluated episode of each policy; None where nobody knows."""
    rows = lake.sql(
        """select policy_id, split, avg(tokens) as tokens, avg(cost) as cost from trajectories
           where purpose = 'evaluate' and ours group by all"""
    ).to_pylist()
    known = {(row["policy_id"], row["split"]): {"tokens": row["tokens"], "cost": row["cost"]} for row in rows}
    return [known.get((rate.policy_id, rate.split), {"tokens": None, "cost": None}) for rate in rates]


def _shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else f"{value:{form}}"


def rate_points(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A point an iteration and policy, for the plot."""
    return [{**rate, "iteration": report["iteration"]} for report in history for rate in report["rates"]]


def rate_rows(history: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """P(verified) with its interval: a row an iteration and policy."""
    return [
        {
            "iteration": str(report["iteration"]),
            "policy": rate["policy"],
            "P(verified)": f"{rate['rate']:.1%}",
            "95 % interval": f"{rate['low']:.1%} – {rate['high']:.1%}",
            "tasks": str(rate["tasks"]),
            "mean score": f"{rate['mean_score']:.2f}",
            "tokens": _shown(rate["tokens"], ",.0f"),
            "cost": _shown(rate["cost"], ".4f"),
        }
        for report in history
        for rate in report["rates"]
    ]


def as_markdown(history: Sequence[dict[str, Any]], picture: str) -> str:
    """The report one reads."""
    newest = history[-1]
    rows = rate_rows(history)
    head = "| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0])
    table = "\n".join("| " + " | ".join(map(markdown, row.values())) + " |" for row in rows)
    reasons = "\n".join(
        f"| {row['route']} | {markdown(row['reason'])} | {row['trajectories']} | `{row['example'][:12]}` |"
        for row in newest["reasons"]
    )
    gates = "\n".join(
        f"- iteration {report['iteration']}, {gate['challenger']}: {markdown(gate['sentence'])}"
        for report in history
        for gate in report["gates"]
    )
    return f"""# {newest["name"]}: iteration {newest["iteration"]}

P(verified) on {newest["rates"][0]["tasks"]} held-out test tasks, seed {newest["seed"]}, Wilson intervals; tokens and
cost are those of an episode.

{head}
{table}

![P(verified) by iteration]({picture})

## Gate

{gates}

## Where the trajectories went

Look at one with `flywheel show ID --data-dir {newest["data_dir"]}`.

| route | why | trajectories | for example |
| --- | --- | ---: | --- |
{reasons}

## How the students decode

{newest["decoding"]}.
"""
