"""Import and export formats by name. A new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flywheel.datasets.formats import (
    atif,
    chat,
    claude_code,
    harbor,
    inspect_log,
    langfuse,
    langsmith,
    openhands,
    otel,
    responses,
    swe_agent,
)
from flywheel.datasets.formats.otel_traces import join_traces
from flywheel.datasets.formats.parsing import Raw
from flywheel.datasets.formats.records import ReadContext
from flywheel.errors import RecordError, named_reason
from flywheel.messages import Image
from flywheel.trajectory import Split, Trajectory

Reader = Callable[[Any, Split, ReadContext], Iterator[Trajectory]]
Writer = Callable[[Trajectory, Mapping[str, Image]], dict[str, Any]]

READERS: dict[str, Reader] = {
    "atif": atif.read,
    "chat": chat.read,
    "swe-agent": swe_agent.read,
    "inspect": inspect_log.read,
    "otel": otel.read,
    "responses": responses.read,
    "claude-code": claude_code.read,
    "openhands": openhands.read,
    "harbor": harbor.read,
    "langfuse": langfuse.read,
    "langsmith": langsmith.read,
}


def read(format: str, record: Any, split: Split, source: ReadContext) -> list[Trajectory]:
    """The trajectories of a record. Raises `RecordError`, and nothing else, whatever the record holds."""
    try:
        return list(READERS[format](record, split, source))
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"cannot be read: {named_reason(error)}") from error


SUFFIXES = {
    "atif": (".json", ".jsonl"),
    "chat": (".jsonl", ".json"),
    "swe-agent": (".traj",),
    "inspect": (".json",),
    "otel": (".jsonl", ".json"),
    "responses": (".jsonl", ".json"),
    "claude-code": (".jsonl",),
    "openhands": (".json", ".jsonl"),
    "harbor": (f"/{harbor.TRAJECTORY}",),
    "langfuse": (".jsonl", ".json"),
    "langsmith": (".jsonl", ".json"),
}
"""How files of a folder end that are looked for."""
SPLITTERS: dict[str, Callable[[Any], list[Any]]] = {"inspect": inspect_log.split}
"""Formats whose documents hold many records."""
JOINERS: dict[str, Callable[[Callable[[], Iterator[Raw]], int], Iterator[Raw]]] = {
    "otel": join_traces,
    "claude-code": claude_code.join_session,
    "openhands": openhands.join_events,
    "langfuse": langfuse.join_traces,
    "langsmith": langsmith.join_traces,
}
"""Formats whose files hold records in pieces."""
DOCUMENTS: dict[str, tuple[Writer, str]] = {
    "atif": (atif.write, ".json"),
    "swe-agent": (swe_agent.write, ".traj"),
    "inspect": (inspect_log.write, ".json"),
}
"""Formats with a file a trajectory."""
LINES: dict[str, Writer] = {"chat": chat.write, "otel": otel.write}
"""Formats with a line a trajectory."""
TUNING = ("sft", "sharegpt", "dpo")
"""Rows that teach: by default of verified training episodes only."""
