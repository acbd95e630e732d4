"""LangSmith: runs as its exports have them, a row a run; the `llm` runs of a trace are its calls of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from flywheel.datasets.formats.chat_messages import tools_of
from flywheel.datasets.formats.joining import join_by
from flywheel.datasets.formats.model_calls import ModelCall, answer_message, chat_messages, run_of_calls
from flywheel.datasets.formats.records import ReadContext, episode, explain, seconds_of
from flywheel.errors import RecordError
from flywheel.trajectory import Split, Trajectory

NAME = "langsmith"
join_traces = join_by(lambda row: row["trace_id"] if "run_type" in row else None, "runs")
"""Rows of an export, a record a trace."""


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One trace. Raises `RecordError` where no call of a model was logged with its messages."""
    runs = record.get("runs") if isinstance(record, dict) else None
    if not isinstance(runs, list) or not all(isinstance(row, dict) for row in runs):
        raise RecordError("runs: not a list of a trace's runs")
    rows = sorted(
        (row for row in runs if row.get("run_type") == "llm"),
        key=lambda row: str(row.get("dotted_order") or row.get("start_time") or ""),
    )
    for row in runs:
        if row not in rows:
            source.count_unread(f"a run of type {row.get('run_type')}")
    try:
        calls = [call for row in rows if (call := _call(row, source))]
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    if not calls:
        raise RecordError("no run of type llm with an answer in the trace")
    root = next((row for row in runs if not row.get("parent_run_id")), rows[0])
    run = run_of_calls(
        calls,
        record,
        source,
        tools=(tools_of(_settings(row).get("tools")) for row in rows),
        started_at=seconds_of(str(root.get("start_time") or "") or None, source),
        error=str(root.get("error") or ""),
    )
    yield episode(NAME, run, split)


def _call(row: Mapping[str, Any], source: ReadContext) -> ModelCall | None:
    """The call behind a row; None for one that came to nothing."""
    answer = answer_message(row.get("outputs"))
    if answer is None:
        source.count_unread("a call without an answer")
        return None
    began, ended = (seconds_of(str(row.get(name) or "") or None, source) for name in ("start_time", "end_time"))
    settings = _settings(row)
    return ModelCall(
        chat_messages(row.get("inputs")),
        answer,
        str(settings.get("model") or settings.get("model_name") or row.get("name") or ""),
        prompt_tokens=source.count("prompt_tokens", row.get("prompt_tokens")),
        completion_tokens=source.count("completion_tokens", row.get("completion_tokens")),
        cost=source.number("total_cost", row.get("total_cost")),
        seconds=max(0.0, ended - began) if began and ended else 0.0,
    )


def _settings(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the model was called with."""
    extra = row.get("extra")
    settings = extra.get("invocation_params") if isinstance(extra, dict) else None
    return settings if isinstance(settings, dict) else {}
