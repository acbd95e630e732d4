"""Runs of a task side by side, aligned by what was done; and two policies over all tasks that both played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from flywheel.datasets.lake.reader import Reader
from flywheel.datasets.versions.versions import difference, find
from flywheel.evaluation.compare import Pair, compare
from flywheel.ui import overview
from flywheel.ui.selection import page_number

Row = dict[str, Any]
PAGE_TASKS = 100
PAGE_ROWS = 500
ALIGNED = 300
"""Steps of two runs between which common blocks are looked for."""
MOST = 4
"""Runs beside each other; a page holds no more."""


def side_by_side(runs: Sequence[Row], page: int) -> Row:
    """Described runs, a page of their steps in rows (None where a run has none), and the row where they part."""
    rows = align([[step["action"] for step in run["steps"]] for run in runs])
    parted = next((place for place, row in enumerate(rows) if len(_actions(runs, row)) > 1), None)
    shown = rows[PAGE_ROWS * (page - 1) : PAGE_ROWS * page]
    return {
        "runs": runs,
        "rows": [
            [None if index is None else runs[place]["steps"][index] for place, index in enumerate(row)] for row in shown
        ],
        "same": [len(_actions(runs, row)) == 1 for row in shown],
        "parted": parted,
        "first_row": PAGE_ROWS * (page - 1),
        "page_rows": PAGE_ROWS,
        "page_number": page,
        "pages": max(1, -(-len(rows) // PAGE_ROWS)),
        "one_task": len({run["task_id"] for run in runs}) == 1,
    }


def align(actions: Sequence[Sequence[str]]) -> list[list[int | None]]:
    """Rows of step indices, a column a run: each run against the first, equal actions in one row (longest common
    blocks, Ratcliff and Obershelp 1988); what one alone did stands in a row of its own."""
    first, *others = actions
    beside: list[dict[int, int]] = []
    between: list[dict[int, list[int]]] = []
    for other in others:
        equal: dict[int, int] = {}
        extra: dict[int, list[int]] = {}
        for kind, i1, i2, j1, j2 in _blocks(first, other):
            paired = min(i2 - i1, j2 - j1) if kind in ("equal", "replace") else 0
            equal |= dict(zip(range(i1, i1 + paired), range(j1, j1 + paired), strict=True))
            extra.setdefault(i2, []).extend(range(j1 + paired, j2))
        beside.append(equal)
        between.append(extra)
    rows: list[list[int | None]] = []
    for index in range(len(first) + 1):
        gaps = zip_longest(*(extra.get(index, []) for extra in between))
        rows += [[None, *gap] for gap in gaps]
        if index < len(first):
            rows.append([index, *(equal.get(index) for equal in beside)])
    return rows


def _blocks(first: Sequence[str], other: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """Blocks of equal and different actions. Between long middles that share neither beginning nor end, steps stand
    beside those of their number: the search for common blocks takes cubic time where one action comes again and
    again."""
    alike = next((place for place, pair in enumerate(zip(first, other, strict=False)) if len(set(pair)) > 1), None)
    start = min(len(first), len(other)) if alike is None else alike
    ends = zip(reversed(first[start:]), reversed(other[start:]), strict=False)
    rest = min(len(first), len(other)) - start
    end = next((place for place, pair in enumerate(ends) if len(set(pair)) > 1), rest)
    middles = first[start : len(first) - end], other[start : len(other) - end]
    if len(middles[0]) * len(middles[1]) > ALIGNED**2:
        i2, j2 = len(first) - end, len(other) - end
        tail = [("equal", i2, len(first), j2, len(other))]
        return [("equal", 0, start, 0, start), ("replace", start, i2, start, j2), *tail]
    return list(SequenceMatcher(None, first, other, autojunk=False).get_opcodes())


def _actions(runs: Sequence[Row], row: Sequence[int | None]) -> set[str | None]:
    return {None if index is None else run["steps"][index]["action"] for run, index in zip(runs, row, strict=True)}


ORDERS = {
    "task": lambda pair: pair.task_id,
    "result": lambda pair: ("won", "lost", "both", "neither", "unknown").index(pair.result),
    "first": lambda pair: pair.first_steps,
    "second": lambda pair: pair.second_steps,
    "difference": lambda pair: pair.first_steps - pair.second_steps,
}
"""What the tasks of two policies are sorted by."""


def policies(reader: Reader, first: str, second: str, where: str, order: str, result: str, page: str) -> Row:
    """Two policies on the tasks that both played: counts, and a page of the tasks that ended with a result, sorted."""
    pairs = compare(reader, first, second, where or "split <> 'train'")
    chosen: list[Pair] = sorted(
        (pair for pair in pairs if result in ("", pair.result)), key=ORDERS.get(order, ORDERS["result"])
    )
    number = page_number(page)
    return {
        "pairs": chosen[PAGE_TASKS * (number - 1) : PAGE_TASKS * number],
        "page_number": number,
        "pages": max(1, -(-len(chosen) // PAGE_TASKS)),
        "counts": Counter(pair.result for pair in pairs),
        "tasks": len(pairs),
    }


def known_policies(reader: Reader) -> list[Row]:
    """Who played, the newest first."""
    return reader.rows(
        """select policy_id, policy, max(iteration) as iteration, count(*) as runs from runs
           group by all order by iteration desc, policy_id"""
    )


def iterations(reader: Reader, first: int, second: int) -> list[Row]:
    """Roles of policies in two iterations: P(verified) on test tasks of each, and the policies to compare task by task;
    None where an iteration has none."""
    rates = overview.rates(overview.iterations(reader), reader)
    by_role: dict[str, dict[int, Row]] = {}
    for rate in rates:
        by_role.setdefault(rate["policy"], {})[rate["iteration"]] = rate
    return [
        {"policy": policy, "first": by_iteration.get(first), "second": by_iteration.get(second)}
        for policy, by_iteration in by_role.items()
        if first in by_iteration or second in by_iteration
    ]


def datasets(reader: Reader, first: str, second: str) -> list[Row]:
    """What only the first of two dataset versions holds, what only the second, and what both: runs, steps and verified
    runs by policy. Raises `LakeError` for an unknown version."""
    groups = difference(reader.lake, find(reader.lake, first), find(reader.lake, second))
    return [
        {
            "group": group,
            "runs": len(ids),
            "by_policy": reader.rows(
                """select policy, count(*) as runs, sum(length)::bigint as steps,
                          count(*) filter (verified = 1) as verified
                   from runs where trajectory_id in (select unnest($1)) group by all order by all""",
                [ids],
            ),
        }
        for group, ids in groups.items()
    ]
