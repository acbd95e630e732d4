"""Tasks of the desk: month-ends, releases and triage, each with the scripted solution and the checklist that proves it.

    python examples/desk/generate.py --tasks 400 --check 40

Three templates are for all splits. The fourth, a month-end that goes on in the tracker, joins two applications and
stands in the test split alone. `--check`: so many tasks, spread over all, are played before anything is written: the
solution must reach every point, and neither doing nothing nor another task's solution may solve it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flywheel.environments.adapters.software import open_world
from flywheel.environments.task_checks import refusal

HERE = Path(__file__).parent
SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}
CLERK, DEVELOPER, SUPPORT = "43-3031", "15-1252", "15-1232"
"""Bookkeeping clerks, software developers, computer user support (Standard Occupational Classification)."""
COMPONENTS = ("parser", "editor", "search", "export", "login", "billing", "mail", "charts", "upload", "cache")
TEAMS = ("core", "front", "data", "ops")
NOTES = ("accepts empty files", "keeps the order", "is faster", "shows the total", "no longer blinks", "retries once")
CUSTOMERS = ("Ames", "Bell", "Cole", "Dunn", "Ewing", "Fox", "Gray", "Hart")
Json = dict[str, Any]


def query(database: str, sql: str) -> str:
    return f'sqlite3 {database}.db "{sql}"'


def part(subgoal: str, *commands: str) -> Json:
    return {"subgoal": subgoal, "commands": list(commands)}


def item(name: str, points: int, check: str) -> Json:
    return {"name": name, "points": points, "check": check}


def says(command: str, wanted: str) -> str:
    """A check: does a command print this?"""
    return f"test \"$({command})\" = '{wanted}'"


def to_do(text: str, golden: Sequence[Json]) -> str:
    """An instruction that ends with a list, a line for each thing to do."""
    return "\n".join([text, *(f"- {each['subgoal']}" for each in golden)])


def ledger(draw: random.Random, lines: int) -> Json:
    """Settle a bank statement against the ledger."""
    numbers = draw.sample(range(100, 1000), lines)
    rows, statement, golden, paid, odd = list[str](), list[str](), list[Json](), list[str](), list[str]()
    for line, number in enumerate(numbers, start=1):
        name, amount = f"INV-{number}", draw.randrange(20, 900)
        case = draw.choices(["open", "differs", "paid"], [6, 3, 1])[0] if line > 1 else "differs"
        billed = amount + draw.randrange(5, 90) if case == "differs" else amount
        status = "paid" if case == "paid" else "open"
        rows.append(f"insert into invoice values ('{name}', '{draw.choice(CUSTOMERS)}', {billed}, '{status}');")
        statement.append(f"{name} {amount}")
        look = query("ledger", f"select status from invoice where number='{name}' and amount={amount}")
        settle = query("ledger", f"update invoice set status='settled' where number='{name}'")
        golden.append(
            part(
                f"settle line {line}",
                f"sed -n {line}p statement.txt",
                look,
                settle if case == "open" else f"echo {name} >> exceptions.txt",
            )
        )
        (paid if case == "open" else odd).append(name)
    total = query("ledger", "select sum(amount) from invoice where status='open'")
    golden.append(part("close the ledger", f"{total} > open.txt"))
    settled = query("ledger", "select number from invoice where status='settled' order by number")
    return {
        "instruction": to_do(
            "Settle statement.txt against the table invoice of ledger.db. An open invoice of the same amount becomes "
            "settled; the numbers of all others go to exceptions.txt. To close it, write the sum of what is still open "
            "to open.txt.",
            golden,
        ),
        "applications": ["ledger"],
        "occupation": CLERK,
        "files": {
            "statement.txt": "".join(f"{line}\n" for line in statement),
            "ledger.sql": "create table invoice (number text primary key, customer, amount integer, status);\n"
            + "\n".join(sorted(rows)),
        },
        "golden": golden,
        "checklist": [
            item("what was paid is settled, and nothing else", 50, says(settled, "\n".join(sorted(paid)))),
            item("the exceptions", 30, says("sort exceptions.txt", "\n".join(sorted(odd)))),
            item("the sum", 20, f'test -s open.txt && test "$(cat open.txt)" = "$({total})"'),
        ],
    }


def release(draw: random.Random, changes: int) -> Json:
    """Write the changelog, count the version up, commit and tag."""
    files, golden = Json(), list[Json]()
    written: dict[str, list[str]] = {"feature": [], "fix": []}
    with_features = draw.random() < 0.6
    for number in range(1, changes + 1):
        kind = "feature" if with_features and (number == changes or draw.random() < 0.3) else "fix"
        line = f"- {draw.choice(COMPONENTS)} {draw.choice(NOTES)}"
        files[f"changes/{number:02}.txt"] = f"{kind}\n{line}\n"
        written[kind].append(line)
        read, add = f"cat changes/{number:02}.txt", f"echo '{line}' >> {kind}.md"
        golden.append(part(f"change {number:02}", read, add))
    major, minor, patch = draw.randrange(1, 9), draw.randrange(9), draw.randrange(9)
    version = f"{major}.{minor + 1}.0" if with_features else f"{major}.{minor}.{patch + 1}"
    files["VERSION"] = f"{major}.{minor}.{patch}\n"
    golden.append(part("count up", "ls", "cat VERSION", f"echo {version} > VERSION"))
    golden.append(
        part("publish", "cat VERSION", "git add -A", f"git commit -qm 'Release {version}'", f"git tag v{version}")
    )
    logs = [
        item(f"{kind}.md", 25, says(f"cat {kind}.md 2>/dev/null", "\n".join(lines))) for kind, lines in written.items()
    ]
    return {
        "instruction": to_do(
            "Release the folder changes: append the second line of each to feature.md or fix.md, as its first line "
            "says. Count VERSION up, the middle number if there is a feature (and the last becomes 0), else the last. "
            "To publish, commit all as 'Release X' and tag vX.",
            golden,
        ),
        "applications": ["repository"],
        "occupation": DEVELOPER,
        "files": files,
        "golden": golden,
        "checklist": [
            *logs,
            item("the version", 25, says("cat VERSION", version)),
            item("tagged", 15, f'test "$(git tag --points-at HEAD)" = v{version}'),
            item("nothing left to commit", 10, 'test -z "$(git status -s)"'),
        ],
    }


def triage(draw: random.Random, tickets: int) -> Json:
    """Give each new ticket its team and priority."""
    team_of = {component: draw.choice(TEAMS) for component in COMPONENTS}
    ids = sorted(draw.sample(range(10, 99), tickets))
    rows, golden, assigned = list[str](), list[Json](), list[str]()
    for number in ids:
        component, severity = draw.choice(COMPONENTS), draw.choice(["low", "high"])
        team, priority = team_of[component], 1 if severity == "high" else 3
        rows.append(f"insert into ticket values ({number}, '{component}', '{severity}', null, null);")
        golden.append(
            part(
                f"ticket {number}",
                query("tracker", f"select component, severity from ticket where id={number}"),
                f"grep {component} rules.txt",
                query("tracker", f"update ticket set team='{team}', priority={priority} where id={number}"),
            )
        )
        assigned.append(f"{number}|{team}|{priority}")
    count = query("tracker", "select team, count(*) from ticket group by team order by team")
    golden.append(part("count the teams", f"{count} > teams.txt"))
    result = query("tracker", "select id, team, priority from ticket order by id")
    return {
        "instruction": to_do(
            "Triage the table ticket of tracker.db: the team that rules.txt names for the component, priority 1 if the "
            "severity is high, else 3. Write each team and how many tickets it has to teams.txt.",
            golden,
        ),
        "applications": ["tracker"],
        "occupation": SUPPORT,
        "files": {
            "rules.txt": "".join(f"{component} {team}\n" for component, team in team_of.items()),
            "tracker.sql": "create table ticket (id integer primary key, component, severity, team, priority);\n"
            + "\n".join(rows),
        },
        "golden": golden,
        "checklist": [
            item("teams and priorities", 80, says(result, "\n".join(assigned))),
            item("the count", 20, f'test -s teams.txt && test "$(cat teams.txt)" = "$({count})"'),
        ],
    }


def month_end(draw: random.Random, lines: int) -> Json:
    """A ledger to settle, then a tracker to triage: two applications in one task."""
    first, second = ledger(draw, lines), triage(draw, lines)
    return {
        "instruction": f"{first['instruction']}\n{second['instruction']}",
        "applications": [*first["applications"], *second["applications"]],
        "occupation": CLERK,
        "files": first["files"] | second["files"],
        "golden": first["golden"] + second["golden"],
        "checklist": [{**each, "points": each["points"] / 2} for half in (first, second) for each in half["checklist"]],
    }


TEMPLATES: dict[str, tuple[Callable[[random.Random, int], Json], range, Sequence[str]]] = {
    "ledger": (ledger, range(10, 19), tuple(SPLITS)),
    "release": (release, range(14, 25), tuple(SPLITS)),
    "triage": (triage, range(10, 19), tuple(SPLITS)),
    "month-end": (month_end, range(9, 14), ("test",)),
}
"""Name → how a task is made, its sizes, and its splits."""


def tasks(count: int, seed: int) -> Iterator[Json]:
    """Tasks of all templates in turn."""
    for number in range(count):
        family = list(TEMPLATES)[number % len(TEMPLATES)]
        make, sizes, splits = TEMPLATES[family]
        draw = random.Random(f"{seed}/{family}/{number}")
        split = draw.choices(list(SPLITS), list(SPLITS.values()))[0] if len(splits) > 1 else splits[0]
        yield {"id": f"{family}-{number:04}", "split": split, "family": family, **make(draw, draw.choice(sizes))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=HERE, help="where environment.toml lies, and tasks/ is written")
    given = parser.parse_args()
    rows = list(tasks(given.tasks, given.seed))
    with tempfile.TemporaryDirectory() as folder:
        draft = write(Path(folder), rows)
        for name in ("environment.toml", "setup.sh"):
            (draft / name).write_bytes((HERE / name).read_bytes())
        with open_world(json.dumps({"folder": str(draft)})) as world:
            listed = [task for split in world.listed().values() for task in split]
            chosen = listed[:: max(1, len(listed) // given.check)][: given.check] if given.check else []
            for task in tqdm(chosen, desc="played", unit="task"):
                others = [other for other in listed if other.family == task.family and other != task]
                if problem := refusal(world, task, others[:1]):
                    sys.exit(f"{task.name}: {problem}")
    write(given.folder, rows)
    lengths = sorted(sum(len(each["commands"]) for each in row["golden"]) + 1 for row in rows)
    print(f"{len(rows)} tasks in {given.folder / 'tasks'}; the expert takes {lengths[0]} to {lengths[-1]} steps")


def write(folder: Path, rows: Sequence[Json]) -> Path:
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "generated.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


if __name__ == "__main__":
    main()
