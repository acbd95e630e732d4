"""The helpdesk from nothing to verified runs in the lake: tasks, a teacher, the recorded agent, curation, a look.

python play.py --sessions 600
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PORT = 8411
QUERIES = {
    "what was recorded": """select split, count(*) as sessions, sum(length) as calls, sum(success::int) as succeeded,
        round(avg(success::int), 3) as rate, sum(tokens) as tokens, round(sum(cost), 2) as dollars
        from trajectories group by split order by split""",
    "where it went": "select route, route_reason, count(*) as sessions from trajectories group by all order by all",
    "what the tools were asked": """select name, count(*) as calls, count(*) filter (result like '%refused%'
        or result like '%error%') as refused from tool_calls group by name order by calls desc""",
    "success by kind of ticket": """select family, count(*) as sessions, round(avg(success::int), 2) as rate,
        round(avg(cost), 4) as dollars from trajectories group by family order by rate limit 10""",
}


def flywheel(*arguments: str) -> None:
    """A command, shown and run."""
    print(f"\n$ flywheel {' '.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).parent / "flywheel", *arguments], cwd=HERE, check=True)


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=600)
    parser.add_argument("--mistakes", type=float, default=0.2, help="share of the sessions in which the teacher errs")
    parser.add_argument("--data-dir", default="data")
    given = parser.parse_args()
    tasks = subprocess.run(
        [sys.executable, "tasks.py", str(given.sessions)], cwd=HERE, check=True, stdout=subprocess.PIPE, text=True
    )
    (HERE / "tasks.jsonl").write_text(tasks.stdout)
    teacher = subprocess.Popen([sys.executable, "teacher.py", str(PORT), str(given.mistakes)], cwd=HERE)
    try:
        while not listens():
            time.sleep(0.1)
        place = ["--set", f"data_dir={given.data_dir}"]
        began = time.monotonic()
        flywheel("agent", "helpdesk.toml", "--tasks", str(given.sessions), *place)
        print(f"{given.sessions} sessions in {time.monotonic() - began:.0f} s", flush=True)
    finally:
        teacher.terminate()
        teacher.wait()
    flywheel("curate", "helpdesk.toml", *place)
    for title, query in QUERIES.items():
        print(f"\n# {title}", flush=True)
        flywheel("sql", " ".join(query.split()), "--data-dir", given.data_dir)


if __name__ == "__main__":
    main()
