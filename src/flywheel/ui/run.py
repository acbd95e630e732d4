"""One run: its facts, its steps a few at a time, and what the student that played it read at a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from flywheel import charts
from flywheel.datasets.lake.reader import Reader
from flywheel.datasets.lake.show import FACTS, describe_trajectory
from flywheel.errors import LakeError

Row = dict[str, Any]
STEPS = 200
"""Steps that are sent at once; more follow as one scrolls."""
SHORT_LINES = 6
"""An observation of more lines than these is told by what changed in it."""
FOLD = 1_500
"""Characters of a text that are shown before one asks for all of it."""


def describe(reader: Reader, name: str) -> Row:
    """All that is known of a run: `show.describe_trajectory`, with subgoal bands, sub-agents, other runs of the
    task and a plot."""
    run = describe_trajectory(reader, name)
    trajectory_id = run["trajectory_id"]
    _note_changes(run["steps"])
    _note_repeats(run["steps"])
    (summary,) = reader.rows("select verdict, revoked from runs where trajectory_id = $1", [trajectory_id])
    return {
        **run,
        "summary": summary,
        "facts": {fact: run[fact] for fact in FACTS if fact not in ("system", "tools", "instruction")},
        "bands": bands(run["steps"]),
        "credits": credits_by_method(run["steps"]),
        "children": reader.rows(
            """select trajectory_id, policy, length, stop_reason, verdict from runs where parent_trajectory_id = $1
               order by started_at""",
            [trajectory_id],
        ),
        "others": reader.rows(
            """select trajectory_id, policy, iteration, attempt, length, verdict, score from runs
               where task_id = $1 and trajectory_id <> $2 order by started_at desc limit 30""",
            [run["task_id"], trajectory_id],
        ),
        "drawing": _drawing(run["steps"]),
    }


def _note_changes(steps: Sequence[Row]) -> None:
    """Give each step whose observation is much like the one before the lines that were added and removed."""
    for step in steps:
        step["changed"] = []
    for before, step in pairwise(steps):
        old, new = before["observation"].splitlines(), step["observation"].splitlines()
        kept, shown = set(old) & set(new), max(len(old), len(new))
        if shown > SHORT_LINES and 2 * len(kept) >= shown and before["observation"] != step["observation"]:
            gone = [("removed", line) for line in old if line not in kept]
            step["changed"] = [*gone, *(("added", line) for line in new if line not in kept)]


def _note_repeats(steps: Sequence[Row]) -> None:
    """Mark the steps whose observation is what the calls of the step before answered, and nothing else."""
    for step in steps[:1]:
        step["repeats"] = False
    for before, step in pairwise(steps):
        answers = [call["error"] or call["result"] or "" for call in before["tool_calls"]]
        step["repeats"] = bool(answers) and "\n\n".join(filter(None, answers)) == step["observation"]


def bands(steps: Sequence[Row]) -> list[Row]:
    """Runs of steps under one subgoal: first and last step."""
    spans = []
    for subgoal, group in groupby(steps, key=lambda step: step["subgoal"]):
        indices = [step["index"] for step in group]
        spans.append({"subgoal": subgoal, "first": indices[0], "last": indices[-1]})
    return spans if any(span["subgoal"] for span in spans) else []


def credits_by_method(steps: Sequence[Row]) -> dict[str, list[tuple[int, float, float]]]:
    """Method and level → (step, advantage, advantage as a share of the largest)."""
    methods = sorted({name for step in steps for name in step["credit"]})
    by_method = {}
    for method in methods:
        values = [(step["index"], step["credit"][method]) for step in steps if method in step["credit"]]
        largest = max(abs(value) for _, value in values) or 1.0
        by_method[method] = [(index, value, value / largest) for index, value in values]
    return by_method


def _drawing(steps: Sequence[Row]) -> str:
    """Progress and the sum of rewards over the steps, where the environment told them."""
    rows, total = [], 0.0
    for step in steps:
        total += step["reward"] or 0.0
        for series, value in (
            ("progress", step["progress"]),
            ("rewards so far", None if step["reward"] is None else total),
        ):
            if value is not None:
                rows.append({"step": step["index"], "value": value, "series": series})
    varied = len({row["value"] for row in rows}) > 1
    return charts.svg(charts.lines(rows, "step", "value", "series", width=640, height=90)) if varied else ""


def pretty(arguments: str) -> str:
    """A call's arguments, a line each where they are JSON that loses nothing by it."""
    try:
        read = json.loads(arguments, object_pairs_hook=_unique, parse_float=_exact, parse_constant=_exact)
        return json.dumps(read, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _unique(pairs: Sequence[tuple[str, Any]]) -> Row:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _exact(text: str) -> float:
    if repr(float(text)) != text:
        raise ValueError(f"{text} would be told otherwise")
    return float(text)


def whole_text(description: Row, index: int, field: str, call: int) -> str:
    """One text of one step, all of it: a field of the step, or the arguments, result or error of one of its calls.

    Raises `LakeError` where there is none.
    """
    step: Row = next((step for step in description["steps"] if step["index"] == index), {})
    calls = step.get("tool_calls", [])
    source = calls[call] if field in ("arguments", "result", "error") and 0 <= call < len(calls) else step
    text = source.get(field)
    if not isinstance(text, str):
        raise LakeError(f"step {index} has no {field}")
    return text
