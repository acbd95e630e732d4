"""The flywheel as a whole: how good its policies are, who met whom, who reigned, and where everything went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flywheel import charts
from flywheel.datasets.lake.reader import Readable
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.statistics import rate

Row = dict[str, Any]


def facts(lake: Readable, turns: Sequence[Row], runs: str = "trajectories") -> Row:
    """All that the page tells. `runs`: the relation of runs to read."""
    return {
        "headline": headline(lake, runs),
        "turns": turns,
        "rates": rates(turns, lake),
        "gates": gates(lake),
        "reigns": reigns(lake),
        "expenses": expenses(lake, runs),
        "horizon": rates_by_horizon(lake, runs),
        "routes": routes(lake, runs),
    }


def headline(lake: Readable, runs: str = "trajectories") -> Row:
    """Counts, and who is champion."""
    (row,) = lake.sql(
        f"""select count(*) as runs, count(*) filter (verified = 1) as verified, sum(length)::bigint as steps,
                  count(*) filter (route is null) as waiting, count(*) filter (revoked is not null) as revoked
           from {runs}"""
    ).to_pylist()
    champions = lake.sql("select policy_id from champions order by id desc limit 1")["policy_id"].to_pylist()
    return {**row, "champion": champions[0] if champions else None}


def iterations(lake: Readable) -> list[Row]:
    """Turns in their order, with their reports as data."""
    rows = lake.sql("select iteration, champion_id, started_at, finished_at, report from iterations order by 1")
    return [{**row, "report": json.loads(row["report"] or "{}")} for row in rows.to_pylist()]


def rates(turns: Sequence[Row], lake: Readable) -> list[Row]:
    """P(verified) on test tasks by iteration and policy, as the iterations report it, and what was evaluated since."""
    reports = [{**row, "iteration": turn["iteration"]} for turn in turns for row in turn["report"].get("rates", [])]
    reported = {row["policy_id"] for row in reports}
    rows = lake.sql(
        """select iteration, policy, policy_id, rate, low, high, tasks, verified, mean_score from evaluations
           where split = 'test' order by iteration, policy, created_at"""
    ).to_pylist()
    return [*reports, *(row for row in rows if row["policy_id"] not in reported)]


def rates_by_horizon(lake: Readable, runs: str = "trajectories") -> list[Row]:
    """P(verified) of each policy's newest iteration on test tasks, by the length of the shortest verified run of the
    task; tasks that nobody solved apart."""
    rows = lake.sql(
        f"""with played as (select task_id, policy, iteration, length, verified from {runs}
                           where purpose = 'evaluate' and split = 'test' and ours and verified is not null
                             and stop_reason <> 'infrastructure'),
                newest as (select policy, max(iteration) as iteration from played group by all),
                shortest as (select task_id, min(length) filter (verified = 1) as steps from played group by all)
           select (2 ** floor(log2(greatest(steps, 1))))::int as from_steps, policy, count(*) as tasks,
                  sum(verified)::int as verified
           from played semi join newest using (policy, iteration) join shortest using (task_id)
           group by all order by from_steps nulls last, policy"""
    ).to_pylist()
    points = []
    for row in rows:
        interval = rate(row["verified"], row["tasks"])
        shortest = row["from_steps"]
        bucket = "solved by none" if shortest is None else f"{shortest}–{2 * shortest - 1}"
        points.append({**row, "bucket": bucket, "rate": interval.value, "low": interval.low, "high": interval.high})
    return points


def routes(lake: Readable, runs: str = "trajectories") -> list[Row]:
    """How many collected runs of each iteration and policy went where."""
    rows: list[Row] = lake.sql(
        f"""select iteration, policy, coalesce(route, 'not curated') as route, count(*) as runs,
                  concat('iteration ', iteration, ', ', policy) as who
           from {runs} where purpose <> 'evaluate' group by all order by iteration, policy, route"""
    ).to_pylist()
    return rows


def reasons(lake: Readable) -> list[Row]:
    """Why runs went where they went, each with an example."""
    rows: list[Row] = lake.sql(
        """select route, route_reason, count(*) as runs, min(trajectory_id) as example
           from trajectories where route is not null group by all order by route, runs desc"""
    ).to_pylist()
    return rows


def expenses(lake: Readable, runs: str = "trajectories") -> list[Row]:
    """Steps, tokens and money of runs by policy; None where nobody knows."""
    rows: list[Row] = lake.sql(
        f"""select policy, count(*) as runs, avg(length) as steps, avg(tokens) as tokens, sum(tokens) as all_tokens,
                  avg(cost) as cost, sum(cost) as all_cost
           from {runs} group by all order by policy"""
    ).to_pylist()
    return rows


def gates(lake: Readable) -> list[Row]:
    """Decisions, the newest first, each with its paired test as a `GateDecision`."""
    rows = lake.sql(
        """select gate_id, iteration, challenger_id, champion_id, promoted, result, created_at from gates
           order by iteration desc, promoted desc, challenger_id"""
    ).to_pylist()
    return [{**row, "decision": GateDecision.from_json(json.loads(row["result"]))} for row in rows]


def reigns(lake: Readable) -> list[Row]:
    """Champions, the newest first."""
    reigns = lake.sql("select id, policy_id, reason, gate_id, created_at from champions order by id desc")
    rows: list[Row] = reigns.to_pylist()
    return rows


def stage_seconds(turns: Sequence[Row]) -> list[Row]:
    """Seconds of each stage of the turns that are finished."""
    return [
        {"iteration": f"iteration {turn['iteration']}", "stage": stage, "seconds": seconds}
        for turn in turns
        for stage, seconds in turn["report"].get("seconds", {}).items()
    ]


def drawings(page: Row) -> dict[str, str]:
    """The plots of a page as SVG, those for which there is something to plot. `page`: its `facts`."""
    seconds = stage_seconds(page["turns"])
    horizon, routes = page["horizon"], page["routes"]
    drawn = {
        "rates": page["rates"] and charts.rates_by_iteration(page["rates"]),
        "horizon": horizon and charts.rates_by_bucket(horizon, "steps of the shortest verified run"),
        "routes": routes and charts.stacked_bars(routes, "runs", "who", "route"),
        "seconds": seconds and charts.stacked_bars(seconds, "seconds", "iteration", "stage"),
    }
    return {name: charts.svg(spec) for name, spec in drawn.items() if spec}
