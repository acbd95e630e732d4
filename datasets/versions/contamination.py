"""Contamination: training episodes that give held-out tasks away are found before anything is built of them.

Two checks, over all iterations: runs of words of the held-out task (Brown et al. 2020, arXiv 2005.14165, appendix C:
n-gram overlap, frequent n-grams left out) and episodes that are nearly the same (MinHash).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.near_duplicates import near_duplicates
from flywheel.errors import ContaminationError

GRAM = 5
"""Words of an n-gram."""
FREQUENT = 0.05
"""n-grams in more than this share of the training tasks are the environment's template."""
FEW_TASKS = 3
"""In so many training tasks an n-gram may lie whatever the share."""
TELLING = 8
"""A held-out task with fewer n-grams of its own cannot be distinguished from another by its text."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """`similarity`: share of the held-out task's own n-grams, or the estimated Jaccard similarity of the episodes."""

    training: str
    held_out: str
    what: str
    similarity: float


def find_contamination(lake: Lake, ids: Sequence[str], threshold: float) -> list[Contamination]:
    """Training episodes among `ids` that are so like a dev or test episode of the lake, the worst first."""
    connection = lake.connect(kinds=("trajectories", "steps", "fingerprints", "routes"))
    try:
        connection.register("given", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
        connection.execute(
            """create temp table known as
               select trajectory_id, task_id, case when split <> 'train' then 'held out'
                 when trajectory_id in (from given) then 'given' else 'other' end as side
               from trajectories where stop_reason <> 'infrastructure' and revoked is null"""
        )
        sides = {side for (side,) in connection.sql("select distinct side from known").fetchall()}
        if not sides >= {"given", "held out"}:
            return []
        for name, side in (("ours", "given"), ("held", "held out")):
            connection.execute(
                f"""create temp view {name} as
                    select * from fingerprints semi join (from known where side = '{side}') using (trajectory_id)"""
            )
        nearly = near_duplicates(connection, "ours", "held", threshold).to_pylist()
        leaks = [Contamination(row["one"], row["other"], "playing", row["similarity"]) for row in nearly]
        leaks += [
            Contamination(training, held_out, "words", share)
            for training, held_out, share in _words(connection, threshold)
        ]
    finally:
        connection.close()
    return sorted(leaks, key=lambda leak: (-leak.similarity, leak.training, leak.held_out))


def refuse_contamination(lake: Lake, ids: Sequence[str], threshold: float) -> None:
    """Raise `ContaminationError` if a training episode among `ids` gives a held-out task of the lake away; at a limit
    of 1 none does, for worlds so small that different tasks are played alike."""
    if threshold < 1 and (leaks := find_contamination(lake, ids, threshold)):
        worst = leaks[0]
        raise ContaminationError(
            f"training episode {worst.training} gives the {worst.what} of held-out episode {worst.held_out} away "
            f"(similarity {worst.similarity:.2f}; {len(leaks)} such pairs); leave it out, take it back with "
            f"`flywheel lake revoke {worst.training} --reason leak`, or raise the limit (curate.leak, --leak)"
        )


def _words(connection: duckdb.DuckDBPyConnection, threshold: float) -> list[tuple[str, str, float]]:
    """(training episode, held-out episode, share of the held-out task's own n-grams that the former's task holds).

    Words of a task: its instruction, first observation and the documents that its episodes opened.
    """
    connection.execute(
        f"""create temp table grams as
            with pages as (
              select task_id, side, coalesce(case when "index" = 0 then observation end, '') as view, document
              from steps join known using (trajectory_id) where "index" = 0 or document <> ''),
            asked as (select task_id, side, any_value(instruction) as instruction
                      from known join trajectories using (trajectory_id, task_id) group by all),
            told as (
              select task_id, side,
                     lower(any_value(instruction)) || ' ' || lower(max(view)) || ' '
                       || lower(coalesce(string_agg(distinct document, ' ' order by document)
                                         filter (document <> ''), '')) as text
              from pages join asked using (task_id, side) group by task_id, side),
            words as (select * exclude text, string_split_regex(trim(text), '\\s+') as words from told)
            select distinct task_id, side,
                   unnest(list_transform(range(1, len(words) - {GRAM - 2}),
                                         lambda place: hash(words[place:place + {GRAM - 1}]))) as gram
            from words"""
    )
    return connection.sql(
        f"""with taught as (select distinct task_id, gram from grams where side <> 'held out'),
            tasks as (select count(distinct task_id) as n from taught),
            frequent as (
              select gram from taught, tasks group by gram, n having count(*) > greatest({FEW_TASKS}, {FREQUENT} * n)),
            own as (select task_id, gram from grams where side = 'held out' and gram not in (from frequent)),
            size as (select task_id, count(*) as n from own group by all having count(*) >= {TELLING}),
            shared as (
              select g.task_id as training, o.task_id as held_out, count(*) as n
              from own o join grams g on g.gram = o.gram and g.side = 'given' group by all),
            example as (select task_id, side, min(trajectory_id) as trajectory_id from known group by all)
            select g.trajectory_id, h.trajectory_id, s.n / size.n
            from shared s join size on size.task_id = held_out
            join example g on g.task_id = training and g.side = 'given'
            join example h on h.task_id = held_out and h.side = 'held out'
            where s.n >= {threshold} * size.n"""
    ).fetchall()
