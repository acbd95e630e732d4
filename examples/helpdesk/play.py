"""The helpdesk from nothing to a student that answers its customers.

A scripted teacher answers 600 recorded sessions; a flat and a hierarchical student learn from those that went well and
meet the teacher on held-out tickets; whoever is no worse answers the next sessions behind the same URL, and a second
round learns from these, too.

    python play.py                   record, verify, learn, promote, and once more
    python play.py --rounds 0        record, verify and look
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
MODEL_PORT, STUDENT_PORT = 8411, 8321
TICKETS = 4000
"""In all; a tenth is held out for the gate, another and three whole templates for the report."""
HELD_OUT = 10
"""One in so many of the teacher's sessions is of a dev ticket: students are replayed on it."""
RECORDED = """select split, count(*) as sessions, sum(length) as calls, sum(success::int) as succeeded,
    round(avg(success::int), 3) as rate, sum(tokens) as tokens, round(sum(cost), 2) as dollars
    from trajectories where purpose = 'recorded' group by split order by split"""
QUERIES = {
    "where it went": "select route, route_reason, count(*) as sessions from trajectories group by all order by all",
    "what the tools were asked": """select name, count(*) as calls, count(*) filter (result like '%refused%'
        or result like '%error%') as refused from tool_calls group by name order by calls desc""",
    "success by kind of ticket": """select family, count(*) as sessions, round(avg(success::int), 2) as rate,
        round(avg(cost), 4) as dollars from trajectories where purpose = 'recorded'
        group by family order by rate limit 10""",
}
RESULTS = {
    "held-out tickets, of templates that were taught and of new ones": """select iteration, policy,
        starts_with(family, 'new') as new_template, count(*) as tickets, sum(verified) as solved,
        round(avg(verified), 3) as rate, round(avg(tokens)) as tokens, round(avg(cost), 4) as dollars
        from trajectories where purpose = 'evaluate' and split = 'test' group by all order by all""",
    "who answered the recorded sessions": """select split_part(s.policy_id, '@', 1) as answered_by,
        count(distinct t.trajectory_id) as sessions, count(*) as answers, round(avg(t.success::int), 3) as rate,
        round(sum(s.cost) / count(distinct t.trajectory_id), 4) as dollars, round(1000 * median(s.seconds)) as ms
        from steps s join trajectories t using (trajectory_id) where t.purpose = 'recorded'
        group by all order by all""",
}


def flywheel(*arguments: str) -> None:
    """A command, shown and run."""
    print(f"\n$ flywheel {' '.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).parent / "flywheel", *arguments], cwd=HERE, check=True)


@contextmanager
def running(port: int, *command: str | Path) -> Iterator[None]:
    """A server, from when it listens on."""
    process = subprocess.Popen(command, cwd=HERE)
    try:
        while not listens(port):
            if process.poll() is not None:
                sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def look(title: str, query: str, data_dir: str) -> None:
    print(f"\n# {title}", flush=True)
    flywheel("sql", " ".join(query.split()), "--data-dir", data_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=600, help="that the teacher answers")
    parser.add_argument("--later", type=int, default=120, help="that the student answers before each later round")
    parser.add_argument("--rounds", type=int, default=2, help="of learning; 0: record and look")
    parser.add_argument("--mistakes", type=float, default=0.2, help="share of the sessions in which the teacher errs")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of helpdesk.toml")
    given = parser.parse_args()
    lines = subprocess.run(
        [sys.executable, "tasks.py", str(TICKETS)], cwd=HERE, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    (HERE / "tasks.jsonl").write_text(lines)
    place = [part for each in (f"data_dir={given.data_dir}", *given.set) for part in ("--set", each)]
    with running(MODEL_PORT, sys.executable, "teacher.py", str(MODEL_PORT), str(given.mistakes)):
        held = max(1, given.sessions // HELD_OUT)
        played = given.sessions - held
        began = time.monotonic()
        for split, count in (("train", played), ("dev", held)):
            flywheel("agent", "helpdesk.toml", "--split", split, "--tasks", str(count), *place)
        print(f"{given.sessions} sessions in {time.monotonic() - began:.0f} s", flush=True)
        flywheel("curate", "helpdesk.toml", *place)
        look("what was recorded", RECORDED, given.data_dir)
        for title, query in QUERIES.items():
            look(title, query, given.data_dir)
        for number in range(1, given.rounds + 1):
            began = time.monotonic()
            if number > 1:
                answer(played + (number - 2) * given.later, given.later, given.data_dir, place)
            flywheel("run", "helpdesk.toml", "--set", f"iterations={number}", *place)
            print(f"round {number} in {time.monotonic() - began:.0f} s", flush=True)
    if given.rounds:
        for title, query in RESULTS.items():
            look(title, query, given.data_dir)


def answer(first: int, count: int, data_dir: str, place: list[str]) -> None:
    """New sessions, answered by the champion where there is one; what it cannot answer goes to the model."""
    status = subprocess.run(
        [Path(sys.executable).parent / "flywheel", "status", "--data-dir", data_dir, "--json"],
        cwd=HERE, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    champion = json.loads(status)["champion"]
    sessions = ["agent", "helpdesk.toml", "--split", "train", "--start", str(first), "--tasks", str(count), *place]
    if champion == "random":
        print("\nno student was promoted: the model answers on", flush=True)
        flywheel(*sessions)
        return
    flywheel("route", "helpdesk.toml", "--to", "champion", *place)
    serving = (Path(sys.executable).parent / "flywheel", "serve-policy", "--data-dir", data_dir)
    with running(STUDENT_PORT, *serving):
        flywheel(*sessions)


if __name__ == "__main__":
    main()
