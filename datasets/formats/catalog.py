"""Which formats there are. A new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flywheel.datasets.formats import atif, chat, swe_agent
from flywheel.trajectory import Image, Split, Trajectory

Reader = Callable[[Any, Split, Path], Iterator[Trajectory]]
Writer = Callable[[Trajectory, Mapping[str, Image]], dict[str, Any]]

READERS: dict[str, Reader] = {"atif": atif.read, "chat": chat.read, "swe-agent": swe_agent.read}
SUFFIXES = {"atif": (".json", ".jsonl"), "chat": (".jsonl", ".json"), "swe-agent": (".traj",)}
"""What is looked for in a folder."""
DOCUMENTS: dict[str, tuple[Writer, str]] = {"atif": (atif.write, ".json"), "swe-agent": (swe_agent.write, ".traj")}
"""Formats with a file a trajectory."""
LINES: dict[str, Writer] = {"chat": chat.write}
"""Formats with a line a trajectory."""
TUNING = ("sft", "sharegpt", "dpo")
"""Rows that teach: by default of verified training episodes only."""
EXPORTS = (*DOCUMENTS, *LINES, *TUNING, "parquet")
