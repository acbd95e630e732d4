"""The flywheel's page as one file: no server, no network, no scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel.datasets.lake.lake import Lake
from flywheel.ui import curves, overview
from flywheel.ui.rendering import HERE, make_environment

SERVED_AT = "http://127.0.0.1:8322"
"""Where links lead: to the pages of `flywheel ui`, while it runs."""


def report_page(lake: Lake, number: int, report: Mapping[str, Any]) -> str:
    """The newest state of a flywheel as HTML, with everything it needs inside. `report`: that of the iteration which is
    about to end."""
    turns = [{**turn, "report": report} if turn["iteration"] == number else turn for turn in overview.iterations(lake)]
    facts = overview.facts(lake, turns)
    newest = [row["policy_id"] for row in report["rates"]]
    template = make_environment(lake.name).get_template("report.html")
    return template.render(
        base=SERVED_AT,
        style=(HERE / "static" / "style.css").read_text(),
        curves={policy_id: drawn for policy_id in newest if (drawn := curves.drawings(lake.root, policy_id))},
        reasons=overview.reasons(lake),
        drawings=overview.drawings(facts),
        **facts,
    )
