"""Which runs are meant: facets, words inside them and an SQL condition, as the address of a page holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlencode

from flywheel.datasets.lake.reader import Reader
from flywheel.datasets.lake.reading import check_condition

RUNS = """select t.trajectory_id, t.environment, t.split, t.task_id, t.family, t.instruction[:300] as instruction,
    t.policy, t.policy_id, t.iteration, t.purpose, t.attempt, t.stop_reason, t.success, t.score, t.length, t.tokens,
    t.cost, t.verified, t.route, t.route_reason, t.revoked, t.started_at, t.ours, t.error[:300] as error,
    t.parent_trajectory_id,
    case when t.route is null then 'not curated' when t.verified = 1 then 'verified' else 'not verified' end as verdict,
    case when t.length < 1 then 0 else 2 ** floor(log2(t.length)) end::int as length_from
    from trajectories t"""
"""What pages keep of every run in memory."""
FACETS = ("verdict", "policy_id", "split", "purpose", "iteration", "route", "stop_reason", "length_from", "environment")
"""What runs are told apart by, each a column of `RUNS`."""
ORDERS = {
    "newest": "started_at desc",
    "oldest": "started_at",
    "longest": "length desc",
    "shortest": "length",
    "best": "score desc nulls last",
    "worst": "score nulls last",
    "dearest": "tokens desc nulls last",
}
PAGE_RUNS = 50
_TEXTS = ("observation", "feedback", "document", "thought", "action")


@dataclass(frozen=True, slots=True)
class Selection:
    """`values`: facet → the values of which a run must have one. `text` stands anywhere in what was said or done,
    `tool` was called, and `where` holds, SQL over the view trajectories."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text: str = ""
    tool: str = ""
    where: str = ""
    tag: str = ""
    order: str = "newest"
    page: int = 1

    @classmethod
    def of(cls, params: Sequence[tuple[str, str]]) -> Self:
        """What an address names; what it names wrongly is left out."""
        values = {name: tuple(dict.fromkeys(value for key, value in params if key == name)) for name in FACETS}
        last = dict(params)
        order = last.get("order", "")
        return cls(
            {name: given for name, given in values.items() if given},
            last.get("text", "").strip(),
            last.get("tool", "").strip(),
            last.get("where", "").strip(),
            last.get("tag", "").strip(),
            order if order in ORDERS else "newest",
            page_number(last.get("page", "")),
        )

    def query(self, **changes: Any) -> str:
        """The address's query for this selection with something changed; the first page, unless one is given."""
        pairs = [(name, value) for name, given in self.values.items() for value in given]
        order = "" if self.order == "newest" else self.order
        others = {"text": self.text, "tool": self.tool, "where": self.where, "tag": self.tag, "order": order}
        plain = {name: value for name, value in {**others, **changes}.items() if value}
        return urlencode([*pairs, *plain.items()])

    def toggled(self, name: str, value: str) -> str:
        """The query with a value of a facet chosen, or no longer."""
        given = self.values.get(name, ())
        kept = tuple(other for other in given if other != value) if value in given else (*given, value)
        values = {key: chosen for key, chosen in {**self.values, name: kept}.items() if chosen}
        return Selection(values, self.text, self.tool, self.where, self.tag, self.order).query()


def page_number(text: str) -> int:
    """The page that an address names, or the first."""
    return max(int(text), 1) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def match(reader: Reader, selection: Selection) -> None:
    """Hold as `matched` the runs that fit all but the facets. Raises `QueryError` for a condition that is none."""
    conditions, values = ["true"], list[Any]()
    if selection.where:
        check_condition(selection.where)
        conditions.append(f"trajectory_id in (select trajectory_id from trajectories where ({selection.where}\n))")
    if selection.text:
        in_steps, in_runs = _contains(*_TEXTS), _contains("instruction", "final_observation", "system")
        values.append(selection.text)
        conditions.append(
            f"""trajectory_id in (select trajectory_id from steps where {in_steps} union all
                select trajectory_id from trajectories where {in_runs})"""
        )
    for name, statement in (
        ("tool", "select trajectory_id from tool_calls where name = {}"),
        ("tag", "select trajectory_id from tags where tag = {}"),
    ):
        if value := getattr(selection, name):
            values.append(value)
            conditions.append(f"trajectory_id in ({statement.format(f'${len(values)}')})")
    reader.hold("matched", f"select * from runs where {' and '.join(conditions)}", values)


def facets(reader: Reader, selection: Selection) -> dict[str, list[dict[str, Any]]]:
    """The values of each facet with how many matched runs have them, among those that fit the other facets."""
    counted: dict[str, list[dict[str, Any]]] = {}
    for name in FACETS:
        condition, values = _chosen({key: given for key, given in selection.values.items() if key != name})
        order = {"iteration": "iteration desc", "length_from": "length_from"}.get(name, "count desc")
        rows = reader.rows(
            f"""select {name}::varchar as value, count(*) as count from matched where {condition}
                and {name} is not null group by {name} order by {order} limit 30""",
            values,
        )
        chosen = selection.values.get(name, ())
        unlisted = [value for value in chosen if value not in [row["value"] for row in rows]]
        rows += [{"value": value, "count": 0} for value in unlisted]
        counted[name] = [{**row, "chosen": row["value"] in chosen} for row in rows]
    return counted


def page_of(reader: Reader, selection: Selection) -> tuple[int, list[dict[str, Any]]]:
    """(how many runs fit, those of the page)."""
    condition, values = _chosen(selection.values)
    total = reader.rows(f"select count(*) as runs from matched where {condition}", values)[0]["runs"]
    start = PAGE_RUNS * (selection.page - 1)
    rows = reader.rows(
        f"""select * from matched where {condition} order by {ORDERS[selection.order]}, trajectory_id
            limit {PAGE_RUNS} offset {start}""",
        values,
    )
    return total, rows


def excerpts(reader: Reader, runs: Sequence[str], text: str) -> dict[str, dict[str, Any]]:
    """Where a text first stands in each run: the step, and what is around it."""
    column = " ".join(f"when {_contains(name)} then {name}" for name in _TEXTS)
    rows = reader.rows(
        f"""with hits as (select trajectory_id, "index", case {column} end as passage from steps
                          where list_contains($2, trajectory_id))
            select trajectory_id, arg_min({{'index': "index", 'passage': passage}}, "index") as hit from hits
            where passage is not null group by all""",
        [text, list(runs)],
    )
    return {row["trajectory_id"]: _excerpt(row["hit"], text) for row in rows}


def _contains(*columns: str) -> str:
    """Does the first parameter stand in one of the columns, in capitals or not? RE2 looks five times as fast as `lower`
    and `contains`, and once through all of them faster than through each."""
    return f"regexp_matches(concat_ws(chr(10), {', '.join(columns)}), '(?i)' || regexp_escape($1))"


def _excerpt(hit: Mapping[str, Any], text: str, before_chars: int = 30, after_chars: int = 90) -> dict[str, Any]:
    passage = hit["passage"]
    place = max(passage.lower().find(text.lower()), 0)
    end = place + len(text)
    before, after = passage[max(place - before_chars, 0) : place], passage[end : end + after_chars]
    return {
        "index": hit["index"],
        "before": ("…" if place > before_chars else "") + before,
        "found": passage[place:end],
        "after": after + ("…" if len(passage) > end + after_chars else ""),
    }


def _chosen(values: Mapping[str, tuple[str, ...]]) -> tuple[str, list[Any]]:
    parts = [f"list_contains(${place}, {name}::varchar)" for place, name in enumerate(values, start=1)]
    return " and ".join(parts) or "true", [list(given) for given in values.values()]
