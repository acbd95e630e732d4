"""Contamination: training episodes that give held-out tasks away are found before anything is built of them.

Two checks, over all iterations: runs of words of the held-out task (Brown et al. 2020, arXiv 2005.14165, appendix C:
n-gram overlap, frequent n-grams left out) and episodes that are nearly the same (MinHash).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from flywheel.datasets.lake import Lake
from flywheel.datasets.neighbours import similar
from flywheel.errors import LeakError

LEAK = 0.8
"""Likeness from which a training episode gives a held-out task away."""
GRAM = 5
"""Words of an n-gram."""
FREQUENT = 0.05
"""n-grams in more than this share of the training tasks are the environment's template."""
FEW_TASKS = 3
"""In so many training tasks an n-gram may lie whatever the share."""
TELLING = 8
"""A held-out task with fewer n-grams of its own cannot be told from another by its words."""


@dataclass(frozen=True, slots=True)
class Leak:
    """`similarity`: share of the held-out task's own n-grams, or the estimated Jaccard similarity of the episodes."""

    training: str
    held_out: str
    what: str
    similarity: float


def leaks(lake: Lake, ids: Sequence[str], threshold: float) -> list[Leak]:
    """Training episodes among `ids` that are so like a dev or test episode of the lake, the worst first."""
    connection = lake.connect()
    try:
        connection.register("given", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
        connection.execute(
            """create temp table wanted as
               select trajectory_id, task_id, split = 'train' as trains from trajectories
               where stop_reason <> 'infrastructure' and revoked is null
                 and (split <> 'train' or trajectory_id in (from given))"""
        )
        sides = connection.sql("select distinct trains from wanted").fetchall()
        if len(sides) < 2:
            return []
        for name, condition in (("ours", "trains"), ("held", "not trains")):
            connection.execute(
                f"""create temp view {name} as
                    select * from fingerprints semi join (from wanted where {condition}) using (trajectory_id)"""
            )
        nearly = similar(connection, "ours", "held", threshold).to_pylist()
        found = [Leak(row["one"], row["other"], "playing", row["similarity"]) for row in nearly]
        found += [Leak(one, other, "words", share) for one, other, share in _words(connection, threshold)]
    finally:
        connection.close()
    return sorted(found, key=lambda leak: (-leak.similarity, leak.training, leak.held_out))


def refuse_leaks(lake: Lake, ids: Sequence[str], threshold: float) -> None:
    """Raise `LeakError` if a training episode among `ids` gives a held-out task of the lake away."""
    if found := leaks(lake, ids, threshold):
        worst = found[0]
        raise LeakError(
            f"training episode {worst.training} gives the {worst.what} of held-out episode {worst.held_out} away "
            f"(similarity {worst.similarity:.2f}; {len(found)} such pairs); take it back with: "
            f"flywheel lake revoke {worst.training} --reason leak"
        )


def _words(connection: duckdb.DuckDBPyConnection, threshold: float) -> list[tuple[str, str, float]]:
    """(training episode, held-out episode, share of the held-out task's own n-grams that the former's task holds)."""
    connection.execute(
        f"""create temp table grams as
            with told as (
              select trajectory_id, any_value(w.task_id) as task_id, any_value(trains) as trains,
                     lower(any_value(t.instruction)) || ' ' || lower(min(observation) filter ("index" = 0)) || ' '
                       || lower(coalesce(string_agg(distinct note, ' ' order by note) filter (note <> ''), '')) as text
              from wanted w join trajectories t using (trajectory_id)
              join (select trajectory_id, "index", note, case when "index" = 0 then observation end as observation
                    from steps where "index" = 0 or note <> '') using (trajectory_id)
              group by trajectory_id),
            words as (select * exclude text, string_split_regex(trim(text), '\\s+') as words from told),
            runs as (
              select trajectory_id, task_id, trains,
                     unnest(list_transform(range(1, len(words) - {GRAM - 2}),
                                           lambda place: hash(words[place:place + {GRAM - 1}]))) as gram
              from words)
            select distinct * from runs"""
    )
    return connection.sql(
        f"""with tasks as (select count(distinct task_id) as n from grams where trains),
            frequent as (
              select gram from grams, tasks where trains group by gram, n
              having count(distinct task_id) > greatest({FEW_TASKS}, {FREQUENT} * n)),
            own as (select distinct task_id, gram from grams where not trains and gram not in (from frequent)),
            size as (select task_id, count(*) as n from own group by all having count(*) >= {TELLING}),
            shared as (
              select g.trajectory_id, o.task_id, count(*) as n
              from own o join grams g on g.gram = o.gram and g.trains group by all)
            select s.trajectory_id, (select min(trajectory_id) from wanted w where w.task_id = s.task_id), s.n / size.n
            from shared s join size using (task_id) where s.n >= {threshold} * size.n"""
    ).fetchall()
