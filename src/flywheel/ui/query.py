"""SQL in the page: the same sandbox and limits as `flywheel sql`."""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from flywheel import charts
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import QueryLimits
from flywheel.datasets.lake.result_files import write_rows
from flywheel.errors import QueryError

if TYPE_CHECKING:
    from typing_extensions import Buffer

LIMITS = QueryLimits(seconds=30.0, memory="1GB")
FORMS = {"csv": "text/csv", "jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}
"""What a result is exported as, with its media type."""
EXPORT_BYTES = 512 << 20
_TURNS = threading.BoundedSemaphore(2)
"""Queries that run at once."""
SHOWN_ROWS = 1_000
PLOTTED_ROWS = 2_000
EXAMPLES = {
    "How good is each policy?": """select policy, count(*) as runs, avg(verified) as p_verified
from trajectories group by all order by all""",
    "Does success fall with the horizon?": """select length // 10 * 10 as steps, policy, count(*) as runs,
       avg(verified) as p_verified
from trajectories where purpose = 'evaluate' group by all order by all""",
    "How much of what an iteration collects can teach?": """select iteration, policy, count(*) as collected,
       count(*) filter (route = 'supervised') as teach
from trajectories where purpose = 'collect' group by all order by all""",
    "Why was something not trusted?": """select route, route_reason, count(*) as runs
from trajectories group by all order by runs desc""",
    "Which tools fail, and how?": """select name, count(*) as calls, count(error) as failed, any_value(error) as example
from tool_calls group by name order by failed desc""",
    "Which students did each teacher's runs reach?": """select l.policy_id, t.policy as taught_by, count(*) as runs
from lineage l join trajectories t using (trajectory_id) group by all order by all""",
    "Which subgoals fail?": """select subgoal, count(*) as begun, avg(completed::int) as p_completed
from segments group by all having begun >= 5 order by p_completed limit 40""",
    "What did each step cost?": """select policy_id, count(*) as steps, avg(prompt_tokens) as read,
       avg(completion_tokens) as written, avg(seconds) as seconds
from steps group by all order by all""",
}


def run_query(lake: Lake, statement: str) -> dict[str, Any]:
    """The first rows of a query's result, with a plot where there is something to plot."""
    began = time.monotonic()
    with _TURNS, lake.stream(statement, limits=LIMITS) as result:
        rows = list(islice(result.rows(), SHOWN_ROWS + 1))
        columns = result.columns
    return {
        "columns": columns,
        "rows": rows[:SHOWN_ROWS],
        "more": len(rows) > SHOWN_ROWS,
        "seconds": time.monotonic() - began,
        "drawing": _drawing(columns, rows[:PLOTTED_ROWS]),
    }


def _drawing(columns: list[str], rows: list[list[Any]]) -> str:
    """Numbers over the first column: lines by the first column of words where the first holds numbers, bars where it
    holds words."""
    numeric = [place for place, _ in enumerate(columns) if _numbers(rows, place)]
    words = [place for place, _ in enumerate(columns) if place not in numeric]
    if len(rows) < 2 or not numeric or len(columns) < 2:
        return ""
    last = numeric[-1]
    if 0 in numeric and len(numeric) > 1:
        points = [
            {"x": row[0], "y": row[last], "series": str(row[words[0]]) if words else columns[last]}
            for row in rows
            if row[0] is not None and row[last] is not None
        ]
        return charts.svg(charts.lines(points, "x", "y", "series", title=columns[0], height=220))
    if words and len(rows) <= 60:
        bars = [{"x": row[last] or 0, "y": ", ".join(str(row[place])[:80] for place in words)} for row in rows]
        return charts.svg(charts.bars(bars, "x", "y", title=columns[last]))
    return ""


def _numbers(rows: list[list[Any]], place: int) -> bool:
    values = [row[place] for row in rows if row[place] is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


class _Bounded(io.BufferedIOBase):
    """A file that takes `EXPORT_BYTES` and no more."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, piece: Buffer) -> int:
        if self._file.tell() + memoryview(piece).nbytes > EXPORT_BYTES:
            raise QueryError(f"more than {EXPORT_BYTES >> 20} MiB; write it with: flywheel sql … --output FILE")
        return self._file.write(piece)


def export(lake: Lake, statement: str, form: str) -> Iterator[bytes]:
    """The whole result as a file of one of `FORMS`, in pieces. Raises `QueryError` before the first of them."""
    with tempfile.TemporaryFile() as file:
        with _TURNS, lake.stream(statement, limits=LIMITS, printed=form != "parquet") as result:
            write_rows(result, form, cast(BinaryIO, _Bounded(file)))
        file.seek(0)
        while piece := file.read(1 << 20):
            yield piece
