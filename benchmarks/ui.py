"""`flywheel ui` on a large lake, beside `inspect view` on the same runs; JSON on stdout.

python benchmarks/ui.py [--runs 20000] [--steps 40] [--lake DIR] [--inspect PYTHON]

A lake of made-up runs is written (or that of an earlier call taken up), the command started, and each kind of page
asked for, after a first time, in a real Chromium. `--inspect`: the interpreter of a virtual environment with
inspect-ai; it serves the same runs, a thousand a log, with `inspect view`. Seconds to the first page count
from the start of the command; memory is the largest resident set of the server's processes, in MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from made_up import trajectories
from playwright.sync_api import Page, sync_playwright

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.formats import inspect_log
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.adapters.browser import executable

RUNS_OF_A_LOG = 1_000
PORT, PEER_PORT = 8397, 8398


def filled(folder: Path, runs: int, steps: int) -> Lake:
    """A lake of routed runs."""
    lake = Lake(folder, create=True)
    if lake.snapshot():
        return lake
    made = trajectories(runs, steps)
    for some in iter(lambda: list(islice(made, RUNS_OF_A_LOG)), []):
        lake.append(some, "made up")
        rows = [
            {
                "trajectory_id": each.trajectory_id,
                "route": "supervised" if each.success else "executor",
                "verified": bool(each.success),
                "reason": "made up",
                "source": "made up",
                "created_at": 1.0,
            }
            for each in some
        ]
        lake.append_facts("routes", pa.Table.from_pylist(rows, ARROW_SCHEMAS["routes"]), "made up")
    return lake


def megabytes(server: subprocess.Popen[str]) -> float:
    """Resident memory of a server and its children."""
    process = psutil.Process(server.pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e6


def answered(url: str, began: float) -> float:
    """Seconds from a command's start to its first page."""
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                answer.read()
            return time.perf_counter() - began
        except OSError:
            time.sleep(0.01)


def shown(page: Page, url: str, sign: str) -> float:
    """Seconds until a page shows an element."""
    began = time.perf_counter()
    page.goto(url)
    page.locator(sign).first.wait_for(state="attached")
    return time.perf_counter() - began


@contextmanager
def ended(server: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield server
    finally:
        server.terminate()
        server.wait()


def ours(lake: Lake, page: Page) -> dict[str, Any]:
    first, second = lake.sql("select trajectory_id from trajectories order by 1 limit 2")["trajectory_id"].to_pylist()
    command = [sys.executable, "-m", "flywheel", "ui", "--data-dir", str(lake.root), "--port", str(PORT), "--no-open"]
    began = time.perf_counter()
    with ended(subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)) as server:
        url = f"http://127.0.0.1:{PORT}"
        start = answered(f"{url}/runs", began)
        pages = {
            "flywheel": ("/", "figure"),
            "runs": ("/runs", "tr[data-row]"),
            "runs, narrowed": ("/runs?verdict=verified&policy_id=flat&order=longest", "tr[data-row]"),
            "runs, SQL condition": ("/runs?where=score+%3C+0.9+and+length+%3E+3", "tr[data-row]"),
            "runs, page 300": ("/runs?page=300", "tr[data-row]"),
            "search, common": ("/runs?text=onion+potato", "mark"),
            "search, nothing": ("/runs?text=an+aubergine", ".empty"),
            "run": (f"/runs/{first}", "#step-39"),
            "compare runs": (f"/compare?run={first}&run={second}", ".row"),
            "compare policies": ("/compare?first=flat&second=expert&where=true", "tr[data-row]"),
            "lineage": ("/lineage", "h1"),
            "SQL": ("/sql?q=select+policy_id,+count(*)+as+n+from+steps+group+by+all", ".rows td"),
        }
        seconds = {name: shown(page, url + path, sign) for name, (path, sign) in pages.items()}
        again = {name: shown(page, url + path, sign) for name, (path, sign) in pages.items()}
        memory = megabytes(server)
    return {"first_page": start, "seconds": seconds, "seconds_again": again, "memory": memory}


def write_logs(lake: Lake, folder: Path) -> None:
    """The lake's runs as Inspect's logs, each of many samples."""
    folder.mkdir()
    ids = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    for start in range(0, len(ids), RUNS_OF_A_LOG):
        logs = [inspect_log.write(each, {}) for each in lake.trajectories(ids[start : start + RUNS_OF_A_LOG])]
        samples = [sample for log in logs for sample in log["samples"]]
        dataset = {"name": "made-up", "samples": len(samples)}
        whole = {**logs[0], "samples": samples, "eval": {**logs[0]["eval"], "dataset": dataset}}
        (folder / f"2026-01-01T00-00-{start // RUNS_OF_A_LOG:02d}+00-00_made-up_{start}.json").write_text(
            json.dumps(whole)
        )


def peers(lake: Lake, page: Page, python: str, logs: Path) -> dict[str, Any]:
    """The same of `inspect view`: its list of logs, the samples of a log, and a sample."""
    inspect = str(Path(python).with_name("inspect"))
    if not logs.exists():
        plain = logs.with_name(f"{logs.name}-json")
        write_logs(lake, plain)
        subprocess.run([inspect, "log", "convert", "--to", "eval", "--output-dir", str(logs), str(plain)], check=True)
    command = [inspect, "view", "--log-dir", str(logs), "--port", str(PEER_PORT)]
    began = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ended(subprocess.Popen(command, text=True, **quiet)) as server:
        url = f"http://127.0.0.1:{PEER_PORT}"
        start = answered(url, began)
        listed = shown(page, url, ".ag-row, [class*=row]")
        name = next(logs.glob("*.eval")).name
        samples = shown(page, f"{url}/#/tasks/{name}/samples", ".ag-row, [role=row]")
        memory = megabytes(server)
    return {"first_page": start, "seconds": {"logs": listed, "samples of a log": samples}, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lake", type=Path)
    parser.add_argument("--inspect", default="")
    options = parser.parse_args()
    folder = options.lake or Path(tempfile.mkdtemp())
    with filled(folder, options.runs, options.steps) as lake, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        page = chromium.new_page()
        figures = {"flywheel": ours(lake, page)}
        if options.inspect:
            figures["inspect"] = peers(lake, page, options.inspect, folder.with_name(f"{folder.name}-logs"))
        chromium.close()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
