"""The lake beside its peers on the same trajectories, JSON on stdout.

python benchmarks/lake.py [--trajectories 20000] [--steps 40] [--batch 32] [--scout PYTHON]

Peers: JSON lines (+ pandas), Hugging Face datasets, SQLite, LanceDB (if installed), and Inspect Scout's transcript
store through the interpreter of a virtual environment of its own (--scout). Everyone ingests the same objects in the
same batches and syncs each batch to disk. Rows per CPU-second count user and system time of the process. Times of
queries are the best of three, in a fresh connection each; the JSON lines are loaded once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Dataset, disable_progress_bars
from made_up import trajectories

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.stream import DatasetStream
from flywheel.datasets.versions.versions import create
from flywheel.trajectory import Trajectory

QUESTION = "select task_id, policy, count(*) as n, avg(success::int) as p from trajectories group by all"
HERE = Path(__file__).parent
Batch = list[Trajectory]


def cpu_seconds(work: Callable[[Batch], object], batches: list[Batch]) -> float:
    began = resource.getrusage(resource.RUSAGE_SELF)
    for batch in batches:
        work(batch)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return ended.ru_utime - began.ru_utime + ended.ru_stime - began.ru_stime


def best(work: Callable[[], object], runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


AsRecord = Callable[[Any], dict[str, Any]]
"""A trajectory as a peer stores it."""


def to_jsonl(folder: Path, record: AsRecord = asdict) -> Callable[[Batch], None]:
    def work(batch: Batch) -> None:
        with (folder / "episodes.jsonl").open("a") as file:
            file.writelines(json.dumps(record(trajectory)) + "\n" for trajectory in batch)
            file.flush()
            os.fsync(file.fileno())

    return work


def to_hugging_face(folder: Path, record: AsRecord = asdict) -> Callable[[Batch], None]:
    def work(batch: Batch) -> None:
        path = folder / f"{batch[0].trajectory_id}.parquet"
        Dataset.from_list([record(trajectory) for trajectory in batch]).to_parquet(str(path))
        sync(path)

    return work


def to_sqlite(folder: Path) -> Callable[[Batch], None]:
    connection = sqlite3.connect(folder / "episodes.sqlite")
    connection.execute("create table step (trajectory_id, idx, body, primary key (trajectory_id, idx))")

    def work(batch: Batch) -> None:
        with connection:
            connection.executemany(
                "insert into step values (?, ?, ?)",
                (
                    (trajectory.trajectory_id, step.index, json.dumps(asdict(step)))
                    for trajectory in batch
                    for step in trajectory.steps
                ),
            )

    return work


def to_lancedb(folder: Path) -> Callable[[Batch], None]:
    import lancedb

    database = lancedb.connect(folder)
    tables: list[Any] = []

    def work(batch: Batch) -> None:
        rows = [
            {"trajectory_id": trajectory.trajectory_id, **asdict(step)}
            for trajectory in batch
            for step in trajectory.steps
        ]
        table = pa.Table.from_pylist(rows)
        if tables:
            tables[0].add(table)
        else:
            tables.append(database.create_table("steps", table))

    return work


def scout(python: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [python, str(HERE / "scout_store.py"), str(folder)]
    command += [str(value) for value in (arguments.trajectories, arguments.steps, arguments.batch)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratios(ours: float, theirs: dict[str, float]) -> dict[str, float]:
    return {name: round(ours / value, 2) for name, value in theirs.items() if name != "flywheel"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scout", help="python of an environment with inspect-scout")
    asked = parser.parse_args()
    disable_progress_bars()
    every = list(trajectories(asked.trajectories, asked.steps))
    batches = [every[start : start + asked.batch] for start in range(0, len(every), asked.batch)]
    rows = asked.trajectories * asked.steps
    figures: dict[str, Any] = {"trajectories": asked.trajectories, "steps": rows, "batch": asked.batch}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        makers = {"jsonl": to_jsonl, "hugging_face": to_hugging_face, "sqlite": to_sqlite}
        if importlib.util.find_spec("lancedb"):
            makers["lancedb"] = to_lancedb
        folders = {name: Path(place) / name for name in ("flywheel", *makers, "scout")}
        for folder in folders.values():
            folder.mkdir()
        lake = Lake(folders["flywheel"], create=True)
        writers: dict[str, Callable[[Batch], object]] = {"flywheel": lambda batch: lake.append(batch, "benchmark")}
        writers |= {name: make(folders[name]) for name, make in makers.items()}
        speed = {name: rows / cpu_seconds(work, batches) for name, work in writers.items()}
        found = scout(asked.scout, asked, folders["scout"]) if asked.scout else {}
        if found:
            speed["scout"] = rows / found["ingest"]
        figures["ingest, rows per CPU-second"] = {name: round(value) for name, value in speed.items()}
        figures["ingest, times as fast as"] = ratios(speed["flywheel"], speed)
        sizes = {name: size(folders[name]) / rows for name in speed}
        figures["bytes a step"] = {name: round(value) for name, value in sizes.items()}
        figures["bytes, share of"] = ratios(sizes["flywheel"], sizes)

        def pandas() -> object:
            frame = pd.read_json(folders["jsonl"] / "episodes.jsonl", lines=True)
            return frame.groupby(["task_id", "policy"])["success"].agg(["count", "mean"])

        question = {"flywheel": best(lambda: lake.sql(QUESTION)), "jsonl + pandas": best(pandas, 1)}
        if found:
            question["scout"] = found["question"]
        figures["success by task and policy, seconds"] = {name: round(value, 4) for name, value in question.items()}
        figures["success by task and policy, times as fast as"] = {
            name: round(value / question["flywheel"], 1) for name, value in question.items() if name != "flywheel"
        }
        some = [trajectory.trajectory_id for trajectory in random.Random(1).sample(every, 20)]
        reading = sqlite3.connect(folders["sqlite"] / "episodes.sqlite")
        by_id = {
            "flywheel": sum(best(lambda one=one: lake.trajectories([one])) for one in some) / len(some),
            "sqlite": sum(
                best(lambda one=one: reading.execute("select body from step where trajectory_id = ?", [one]).fetchall())
                for one in some
            )
            / len(some),
        }
        if found:
            by_id["scout"] = found["by id"]
        figures["one trajectory by id, milliseconds"] = {name: round(1000 * value, 2) for name, value in by_id.items()}
        dataset = create(lake, "all", "true")
        began = time.perf_counter()
        read = sum(table.num_rows for table in DatasetStream(lake, dataset, batch=asked.batch))
        streamed = time.perf_counter() - began
        assert read == rows
        arrow_bytes = sum(table.nbytes for table in DatasetStream(lake, dataset, batch=asked.batch))
        figures["stream in seeded order, GB/s"] = round(arrow_bytes / 1e9 / streamed, 3)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
