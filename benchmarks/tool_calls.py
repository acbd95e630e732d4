"""Episodes of tool calls in the lake, beside JSON lines and Hugging Face datasets, JSON on stdout.

python benchmarks/tool_calls.py [--trajectories 2000] [--steps 20] [--batch 32]

Peers store the same conversations in OpenAI's form, tools as JSON text. Everyone ingests the same objects in the same
batches and syncs each batch to disk; rows per CPU-second count user and system time of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from lake import Batch, best, cpu_seconds, ratios, size, to_hugging_face, to_jsonl
from made_up import WORDS

from flywheel.datasets.formats import chat
from flywheel.datasets.formats.catalog import read
from flywheel.datasets.formats.records import ReadContext
from flywheel.datasets.lake.lake import Lake
from flywheel.trajectory import Split, Trajectory

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} a file of the project",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}}},
        },
    }
    for name in ("read", "write", "search", "run")
]
FAILURES = "select name, count(*) as calls, count(error) as failed from tool_calls group by name"


def conversations(count: int, steps: int) -> list[Trajectory]:
    """Made-up runs whose tools answer 1.2 KB of words that partly repeat from call to call."""
    chance, runs = random.Random(0), []
    for number in range(count):
        page = " ".join(chance.choices(WORDS, k=150))
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": " ".join(chance.choices(WORDS, k=200))},
            {"role": "user", "content": f"Task {number}: {' '.join(chance.choices(WORDS, k=12))}"},
        ]
        for step in range(steps - 1):
            name = chance.choice(TOOLS)["function"]["name"]
            arguments = json.dumps({"path": f"{chance.choice(WORDS)}.py", "text": " ".join(chance.choices(WORDS, k=8))})
            call = {"id": f"call_{step}", "type": "function", "function": {"name": name, "arguments": arguments}}
            answer = f"{page} {' '.join(chance.choices(WORDS, k=40))}"
            messages += [
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": f"call_{step}", "content": answer},
            ]
        messages.append({"role": "assistant", "content": "Done."})
        runs += read("chat", {"messages": messages, "tools": TOOLS}, Split.TRAIN, ReadContext())
    return runs


def row(trajectory: Trajectory) -> dict[str, Any]:
    """A run as peers store it; what it was read from is kept by nobody here but the lake."""
    record = chat.write(trajectory, {})
    return {"trajectory_id": trajectory.trajectory_id, **record, "tools": json.dumps(record["tools"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    disable_progress_bars()
    every = conversations(asked.trajectories, asked.steps)
    batches = [every[start : start + asked.batch] for start in range(0, len(every), asked.batch)]
    rows = asked.trajectories * asked.steps
    figures: dict[str, Any] = {"trajectories": asked.trajectories, "steps": rows, "batch": asked.batch}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        folders = {name: Path(place) / name for name in ("flywheel", "jsonl", "hugging_face")}
        for folder in folders.values():
            folder.mkdir()
        lake = Lake(folders["flywheel"], create=True)
        writers: dict[str, Callable[[Batch], object]] = {
            "flywheel": lambda batch: lake.append(batch, "benchmark"),
            "jsonl": to_jsonl(folders["jsonl"], row),
            "hugging_face": to_hugging_face(folders["hugging_face"], row),
        }
        speed = {name: rows / cpu_seconds(work, batches) for name, work in writers.items()}
        sizes = {name: size(folders[name]) / rows for name in speed}
        figures["ingest, rows per CPU-second"] = {name: round(value) for name, value in speed.items()}
        figures["ingest, times as fast as"] = ratios(speed["flywheel"], speed)
        figures["bytes a step"] = {name: round(value) for name, value in sizes.items()}
        figures["bytes, share of"] = ratios(sizes["flywheel"], sizes)
        figures["calls and failures by tool, seconds"] = round(best(lambda: lake.sql(FAILURES)), 4)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
