"""`flywheel top`: what happens in a lake, looked at again every few seconds."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flywheel.datasets.lake.lake import Lake
from flywheel.flows.iterations import iterations
from flywheel.policies.registry import champion
from flywheel.text import printable

RECENT_SECONDS = 120.0
"""What began within so long, and has ended, counts as the present speed."""


def what_happens(lake: Lake) -> dict[str, Any]:
    """The iteration in hand, its runs by policy and purpose, and runs a minute of late."""
    turns = iterations(lake)
    current = turns[-1] if turns else None
    number = current.number if current else 0
    now = lake.now()
    rows = lake.sql(
        f"""select purpose, split, policy, count(*) as runs, count(*) filter (route is null) as waiting,
                   count(*) filter (verified = 1) as verified, avg(length) as steps, sum(tokens)::bigint as tokens,
                   count(*) filter (started_at > {now - RECENT_SECONDS}) * 60 / {RECENT_SECONDS} as a_minute
            from trajectories where iteration = {number} group by all order by max(started_at) desc"""
    ).to_pylist()
    return {
        "iteration": number,
        "running": bool(current and not current.finished),
        "champion": champion(lake),
        "snapshot": lake.snapshot(),
        "runs": rows,
    }


def board(state: dict[str, Any]) -> Group:
    """The same as a table."""
    table = Table("purpose", "split", "policy", "runs", "verified", "not curated", "steps", "tokens", "begun a minute")
    for row in state["runs"]:
        table.add_row(
            row["purpose"],
            row["split"],
            Text(printable(row["policy"])),
            f"{row['runs']:,}",
            f"{row['verified']:,}",
            f"{row['waiting']:,}",
            f"{row['steps']:.1f}",
            "?" if row["tokens"] is None else f"{row['tokens']:,}",
            f"{row['a_minute']:.1f}",
        )
    doing = "running" if state["running"] else "finished" if state["iteration"] else "not begun"
    head = f"iteration {state['iteration']} {doing}, champion {state['champion']}, snapshot {state['snapshot']}"
    return Group(Text(printable(f"{time.strftime('%H:%M:%S')}  {head}")), table)
