"""Credit over the lake: read the steps of a selection, whole tasks at a time, append what each decision is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import check_condition, quoted
from flywheel.distill.credit.diagnostics import Diagnostics, diagnose, together
from flywheel.distill.credit.methods import COLUMNS, SOURCE, Episodes, Method, arguments_of, credit
from flywheel.errors import LakeError
from flywheel.filters.batch import Floats
from flywheel.trajectory import digest

CHUNK_STEPS = 500_000
"""Steps that are read together. Groups are whole, so a task with more of them makes a larger chunk."""
KINDS = ("trajectories", "steps", "segments", "routes")
KEY = ("method", "arguments", "source")
Values = Mapping[str, Mapping[str, Floats]]
"""Level → trajectory → values of its states, the final one last (length + 1)."""


@dataclass(frozen=True, slots=True)
class Credited:
    """What a run did: trajectories that had no such credit before, and what the method found in all of them."""

    trajectories: int
    new: int
    diagnostics: Diagnostics
    sources: tuple[str, ...]
    """What the rows name as their source; with those a trajectory was compared with, where a method compares."""


def assign_credit(
    lake: Lake,
    name: str,
    method: Method,
    condition: str,
    *,
    ids: Sequence[str] | None = None,
    values: Values | None = None,
    source: str = SOURCE,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Credited:
    """Append credits of what a condition over `trajectories` selects; what has them already keeps them.

    Where trajectories are compared with each other, the source names the others, so that later ones get credit of
    their own. `ids` narrows the selection; `values` are those of critics, which `source` then names. Broken episodes
    have no credit. Raises `LakeError` if the condition selects nothing.
    """
    check_condition(condition)
    connection = lake.connect(kinds=KINDS)
    diagnoses, sources, new, trajectories = [], list[str](), 0, 0
    try:
        for chunk in _chunks(connection, condition, ids):
            steps = _steps(connection, chunk, method.segments)
            episodes = Episodes(steps, flattened(values or {}, steps))
            sources.append(source + (f" among {digest(sorted(chunk))}" if method.compares else ""))
            table = credit(name, method, episodes, sources[-1])
            diagnoses.append(diagnose(episodes, table))
            trajectories += len(chunk)
            if not dry_run:
                new += lake.append_facts("credits", table, f"credit {name} {arguments_of(method)}", key=KEY)
            progress(len(chunk))
    finally:
        connection.close()
    if not trajectories:
        raise LakeError(f"nothing to give credit for satisfies: {condition}")
    return Credited(trajectories, new, together(diagnoses), tuple(dict.fromkeys(sources)))


def steps_of(lake: Lake, ids: Sequence[str], segments: str) -> pa.Table:
    """The columns of `COLUMNS`, ordered by trajectory and index. Subgoals begin where a source's segments do."""
    connection = lake.connect(kinds=KINDS)
    try:
        return _steps(connection, ids, segments)
    finally:
        connection.close()


def _chunks(connection: duckdb.DuckDBPyConnection, condition: str, ids: Sequence[str] | None) -> Iterator[list[str]]:
    """Ids of whole tasks, about `CHUNK_STEPS` steps at a time."""
    narrowed = ""
    if ids is not None:
        connection.register("chosen", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
        narrowed = "semi join chosen using (trajectory_id)"
    rows = connection.sql(
        f"""select task_id, list(trajectory_id order by trajectory_id) as ids, sum(length) as steps
            from trajectories {narrowed} where ({condition}
) and length > 0 and stop_reason <> 'infrastructure' group by task_id order by task_id"""
    ).fetchall()
    chunk: list[str] = []
    size = 0
    for _, ids, steps in rows:
        if chunk and size + steps > CHUNK_STEPS:
            yield chunk
            chunk, size = [], 0
        chunk += ids
        size += steps
    if chunk:
        yield chunk


def _steps(connection: duckdb.DuckDBPyConnection, ids: Sequence[str], segments: str) -> pa.Table:
    connection.register("wanted", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
    table = connection.sql(
        f"""with cuts as (select distinct trajectory_id, start as "index", true as cut from segmentations
                            where source = {quoted(segments)})
           select trajectory_id, "index", task_id, coalesce(state_key, '') as state_key,
                  coalesce(reward, 0.0) as reward, coalesce(progress, 0.0) as progress, terminated,
                  "index" = 0 or coalesce(cut, false) as begins
           from steps join wanted using (trajectory_id)
           join (select trajectory_id, task_id from trajectories) using (trajectory_id)
           left join cuts using (trajectory_id, "index") order by trajectory_id, "index" """
    ).to_arrow_table()
    connection.unregister("wanted")
    return table.select(list(COLUMNS))


def flattened(values: Values, steps: pa.Table) -> dict[str, tuple[Floats, Floats]]:
    """Values by level as (T,) and (N,), in the order of the steps."""
    ids = Episodes(steps)
    order = [steps["trajectory_id"][int(place)].as_py() for place in ids.runs.first_N] if values else []
    return {
        level: (
            np.concatenate([known[trajectory_id][:-1] for trajectory_id in order]),
            np.array([known[trajectory_id][-1] for trajectory_id in order], np.float64),
        )
        for level, known in values.items()
    }
