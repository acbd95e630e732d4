"""Lineage as a graph, both ways: teachers, verifiers and corpus behind a student, and what came of it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from flywheel.datasets.lake.reader import Reader
from flywheel.errors import LakeError

Row = dict[str, Any]


def students(reader: Reader) -> list[Row]:
    """Distilled policies, the newest first."""
    return reader.rows(
        """select p.policy_id, p.name, p.iteration, p.snapshot, p.parent_policy_id, p.parameters, p.revoked,
                  p.created_at, (select count(*) from lineage l where l.policy_id = p.policy_id) as taught_by,
                  exists (select 1 from champions c where c.policy_id = p.policy_id) as reigned
           from policies p order by p.iteration desc, p.created_at desc"""
    )


def datasets(reader: Reader) -> list[Row]:
    """Named dataset versions, the newest first."""
    return reader.rows(
        """select name, version, snapshot, condition, trajectories, steps, flag, created_at
           from dataset_versions order by created_at desc"""
    )


def graph(reader: Reader, policy_id: str) -> list[Row]:
    """Columns of a student's graph from left to right, each with a title and nodes (title, facts, link, bad). What was
    revoked is bad. Raises `LakeError` for an unknown student."""
    matches = reader.rows("select * from policies where policy_id = $1", [policy_id])
    if not matches:
        raise LakeError(f"no student '{policy_id}' in {reader.name}")
    (student,) = matches
    columns = {
        "taught by": _teachers(reader, student),
        "let in by": _verifiers(reader, policy_id),
        "corpus": _corpus(reader, student),
        "student": [_student(student)],
        "met at the gate": _gates(reader, policy_id),
        "what came of it": [*_reigns(reader, policy_id), *_played(reader, policy_id), *_heirs(reader, policy_id)],
    }
    return [{"title": title, "nodes": nodes} for title, nodes in columns.items() if nodes]


def touched(reader: Reader, trajectory_id: str) -> list[Row]:
    """Students that learned from a run."""
    return reader.rows(
        """select policy_id, p.iteration from lineage join policies p using (policy_id)
           where trajectory_id = $1 order by p.iteration, policy_id""",
        [trajectory_id],
    )


_TAUGHT = "lineage l join runs t using (trajectory_id) where l.policy_id = $1"


def _teachers(reader: Reader, student: Row) -> list[Row]:
    rows = reader.rows(
        f"""select t.policy_id, t.policy, t.iteration, count(*) as runs, count(*) filter (t.verified = 1) as verified,
                   count(*) filter (t.revoked is not null) as revoked from {_TAUGHT} group by all order by runs desc""",
        [student["policy_id"]],
    )
    nodes = []
    for row in rows:
        facts = [f"{row['runs']} runs, {row['verified']} verified"]
        facts += [f"{row['revoked']} revoked"] if row["revoked"] else []
        link = _runs(policy_id=row["policy_id"], iteration=row["iteration"])
        nodes.append(_node(f"{row['policy']}, iteration {row['iteration']}", facts, link, bad=row["revoked"] > 0))
    parent = student["parent_policy_id"]
    return [*nodes, _node(parent, ["training went on from it"], f"/lineage/{parent}")] if parent else nodes


def _verifiers(reader: Reader, policy_id: str) -> list[Row]:
    rows = reader.rows(
        f"""select verifier, version, count(*) as judged, count(*) filter (passed) as passed
            from verdicts semi join (select trajectory_id from {_TAUGHT}) using (trajectory_id)
            group by all order by all""",
        [policy_id],
    )
    return [
        _node(row["verifier"], [f"version {row['version']}", f"passed {row['passed']} of {row['judged']}"])
        for row in rows
    ]


def _corpus(reader: Reader, student: Row) -> list[Row]:
    """What was learned from: what a condition selected, the dataset versions that say the same, or all up to then."""
    condition = json.loads(student["card"])["condition"]
    counted = reader.rows("select count(*) as runs from lineage where policy_id = $1", [student["policy_id"]])
    facts = [f"{counted[0]['runs']} runs, snapshot {student['snapshot']}"]
    if not condition:
        return [_node(f"all that could teach up to iteration {student['iteration']}", facts)]
    named = reader.rows(
        """select name, version, flag from dataset_versions
           where condition = $1 or concat('dataset ', name, '@v', version) = $1 order by name, version""",
        [condition],
    )
    if not named:
        return [_node(condition, facts, f"/runs?{urlencode({'where': condition})}")]
    titles = [(f"{row['name']}@v{row['version']}", row["flag"]) for row in named]
    return [_node(title, [*facts, flag] if flag else facts, "/lineage", bad=bool(flag)) for title, flag in titles]


def _student(row: Row) -> Row:
    facts = [f"{row['parameters']:,} parameters", f"iteration {row['iteration']}, snapshot {row['snapshot']}"]
    facts += [f"{row['revoked']} of its runs revoked since"] if row["revoked"] else []
    return _node(row["policy_id"], facts, bad=row["revoked"] > 0)


def _gates(reader: Reader, policy_id: str) -> list[Row]:
    rows = reader.rows(
        """select gate_id, iteration, challenger_id, champion_id, promoted, challenger_id = $1 as challenged from gates
           where challenger_id = $1 or champion_id = $1 order by created_at""",
        [policy_id],
    )
    return [
        _node(
            row["champion_id"] if row["challenged"] else row["challenger_id"],
            [
                f"iteration {row['iteration']}, as {'challenger' if row['challenged'] else 'champion'}",
                "challenger promoted" if row["promoted"] else "challenger refused",
            ],
            f"/#gate-{row['gate_id']}",
        )
        for row in rows
    ]


def _reigns(reader: Reader, policy_id: str) -> list[Row]:
    rows = reader.rows("select reason from champions where policy_id = $1 order by id", [policy_id])
    return [_node("champion", [row["reason"]], "/#champions") for row in rows]


def _played(reader: Reader, policy_id: str) -> list[Row]:
    rows = reader.rows(
        """select purpose, split, iteration, count(*) as runs, count(*) filter (verified = 1) as verified from runs
           where policy_id = $1 group by all order by iteration, purpose""",
        [policy_id],
    )
    return [
        _node(
            f"{row['runs']} runs played",
            [f"{row['purpose']}, {row['split']}, iteration {row['iteration']}", f"{row['verified']} verified"],
            _runs(policy_id=policy_id, **{name: row[name] for name in ("purpose", "split", "iteration")}),
        )
        for row in rows
    ]


def _heirs(reader: Reader, policy_id: str) -> list[Row]:
    rows = reader.rows(
        """select policy_id, 'training went on from this one' as how from policies where parent_policy_id = $1
           union all
           select l.policy_id, concat('learned from ', count(*), ' of its runs')
           from lineage l join runs t using (trajectory_id) where t.policy_id = $1 group by all order by all""",
        [policy_id],
    )
    return [_node(row["policy_id"], [row["how"]], f"/lineage/{row['policy_id']}") for row in rows]


def _runs(**facets: Any) -> str:
    return f"/runs?{urlencode(facets)}"


def _node(title: str, facts: list[str], link: str = "", *, bad: bool = False) -> Row:
    return {"title": title, "facts": facts, "link": link, "bad": bad}
