"""The lake beside JSONL, Hugging Face datasets and SQLite on the same trajectories, JSON on stdout.

python benchmarks/lake.py [--trajectories 2000] [--steps 40] [--batch 32]

Everyone ingests the same Python objects in the same batches and syncs each batch to disk. Rows per CPU-second count
user and system time of this process. Times of queries are the best of three, in a fresh connection each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, disable_progress_bars

from flywheel.datasets.lake import Lake
from flywheel.datasets.pins import create
from flywheel.datasets.stream import PinStream
from flywheel.trajectory import Split, Step, StopReason, Task, Trajectory, trajectory_id

TEXT = "red green yellow onion potato pepper fridge counter oven stove open closed north south door kitchen"
WORDS = TEXT.split()
QUESTION = "select task_id, policy, count(*) as n, avg(success::int) as p from trajectories group by all"


def trajectories(count: int, steps: int) -> Iterator[Trajectory]:
    """Made-up episodes whose observations are 1.2 KB of words that partly repeat from step to step."""
    chance = random.Random(0)
    for number in range(count):
        task = Task("made-up", "{}", Split.TRAIN, number // 4, "Do it.")
        room = " ".join(chance.choices(WORDS, k=150))
        policy = ("expert", "flat", "hierarchical")[number % 3]
        rows = tuple(
            Step(
                index=index,
                observation=f"{room} {' '.join(chance.choices(WORDS, k=40))}",
                event="Done.",
                note="",
                place="kitchen",
                state_key=f"{chance.getrandbits(64):016x}",
                action=" ".join(chance.choices(WORDS, k=3)),
                thought="",
                subgoal="explore",
                switched=index == 0,
                terminated=index == steps - 1,
                truncated=False,
                trainable=True,
                prompt_tokens=100,
                completion_tokens=3,
                seconds=0.01,
                reward=float(index == steps - 1),
                progress=index / steps,
                policy_id=policy,
                policy_version="1",
                logprobs=(-0.5, -0.25, -0.125),
                valid_actions=("go north", "go south", "open fridge"),
            )
            for index in range(steps)
        )
        yield Trajectory(
            trajectory_id=trajectory_id(task, policy, "1", "collect", number),
            environment=task.environment,
            parameters=task.parameters,
            split=task.split,
            seed=task.seed,
            task_id=task.task_id,
            task_group=task.group,
            instruction=task.instruction,
            policy=policy,
            policy_id=policy,
            policy_version="1",
            iteration=1,
            purpose="collect",
            attempt=number,
            stop_reason=StopReason.SUCCESS if chance.random() < 0.5 else StopReason.FAILURE,
            success=number % 2 == 0,
            score=1.0,
            total_reward=1.0,
            length=steps,
            final_observation="",
            final_event="",
            final_state_key="",
            error="",
            parent_policy_id="",
            config_digest="",
            started_at=0.0,
            steps=rows,
        )


def cpu_seconds(work: Callable[[list[Trajectory]], object], batches: list[list[Trajectory]]) -> float:
    began = time.process_time()
    for batch in batches:
        work(batch)
    return time.process_time() - began


def best(work: Callable[[], object], runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def to_jsonl(folder: Path) -> Callable[[list[Trajectory]], None]:
    def work(batch: list[Trajectory]) -> None:
        with (folder / "episodes.jsonl").open("a") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in batch)
            file.flush()
            os.fsync(file.fileno())

    return work


def to_hugging_face(folder: Path) -> Callable[[list[Trajectory]], None]:
    def work(batch: list[Trajectory]) -> None:
        path = folder / f"{batch[0].trajectory_id}.parquet"
        Dataset.from_list([asdict(one) for one in batch]).to_parquet(str(path))
        with path.open("rb") as file:
            os.fsync(file.fileno())

    return work


def to_sqlite(folder: Path) -> Callable[[list[Trajectory]], None]:
    connection = sqlite3.connect(folder / "episodes.sqlite")
    connection.execute("create table step (trajectory_id, idx, body, primary key (trajectory_id, idx))")

    def work(batch: list[Trajectory]) -> None:
        with connection:
            connection.executemany(
                "insert into step values (?, ?, ?)",
                ((one.trajectory_id, step.index, json.dumps(asdict(step))) for one in batch for step in one.steps),
            )

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    disable_progress_bars()
    every = list(trajectories(asked.trajectories, asked.steps))
    batches = [every[start : start + asked.batch] for start in range(0, len(every), asked.batch)]
    rows = asked.trajectories * asked.steps
    figures: dict[str, Any] = {"trajectories": asked.trajectories, "steps": rows, "batch": asked.batch}
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in ("flywheel", "jsonl", "hugging_face", "sqlite")}
        for folder in folders.values():
            folder.mkdir()
        lake = Lake(folders["flywheel"], create=True)
        writers = {
            "flywheel": lambda batch: lake.append(batch, "benchmark"),
            "jsonl": to_jsonl(folders["jsonl"]),
            "hugging_face": to_hugging_face(folders["hugging_face"]),
            "sqlite": to_sqlite(folders["sqlite"]),
        }
        speed = {name: rows / cpu_seconds(work, batches) for name, work in writers.items()}
        figures["ingest, rows per CPU-second"] = {name: round(value) for name, value in speed.items()}
        figures["ingest, times as fast as"] = {
            name: round(speed["flywheel"] / value, 2) for name, value in speed.items() if name != "flywheel"
        }
        sizes = {name: size(folder) for name, folder in folders.items()}
        figures["bytes a step"] = {name: round(value / rows) for name, value in sizes.items()}
        question = best(lambda: lake.sql(QUESTION))

        def pandas() -> object:
            frame = pd.read_json(folders["jsonl"] / "episodes.jsonl", lines=True)
            return frame.groupby(["task_id", "policy"])["success"].agg(["count", "mean"])

        figures["success by task and policy, seconds"] = {
            "flywheel": round(question, 3),
            "jsonl + pandas": round(loaded := best(pandas, 1), 3),
            "times as fast": round(loaded / question),
        }
        some = [one.trajectory_id for one in random.Random(1).sample(every, 20)]
        figures["one trajectory by id, seconds"] = round(
            sum(best(lambda one=one: lake.trajectories([one])) for one in some) / len(some), 4
        )
        pin = create(lake, "all", "true")
        began, read = time.perf_counter(), 0
        for table in PinStream(lake, pin, batch=asked.batch):
            read += table.nbytes
        figures["stream in seeded order, GB/s"] = round(read / 1e9 / (time.perf_counter() - began), 3)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
