"""Langfuse: observations as its exports have them (rows in either spelling, or a trace with its observations).

Every generation of a trace is a call of the model; a trace is a run. Scores that are downloaded with a trace say how it
went.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from flywheel.datasets.formats.chat_messages import tools_of
from flywheel.datasets.formats.joining import join_by
from flywheel.datasets.formats.model_calls import ModelCall, answer_message, chat_messages, run_of_calls
from flywheel.datasets.formats.records import ReadContext, episode, explain, seconds_of
from flywheel.errors import RecordError
from flywheel.trajectory import Split, Trajectory

NAME = "langfuse"
join_traces = join_by(lambda row: row.get("traceId") or row.get("trace_id"), "observations")
"""Rows of an export, a record a trace."""


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One trace. Raises `RecordError` where no generation was logged with its messages."""
    observations = record.get("observations") if isinstance(record, dict) else None
    if not isinstance(observations, list) or not all(isinstance(row, dict) for row in observations):
        raise RecordError("observations: not a list of a trace's observations")
    generations = [row for row in observations if str(row.get("type", "")).upper() == "GENERATION"]
    for row in observations:
        if row not in generations:
            source.count_unread(f"an observation of type {row.get('type')}")
    generations.sort(key=lambda row: str(_field(row, "startTime") or ""))
    try:
        calls = [call for row in generations if (call := _call(row, source))]
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    if not calls:
        raise RecordError("no observation of type GENERATION with an answer in the trace")
    scores = {str(score.get("name")): score.get("value") for score in record.get("scores") or () if "name" in score}
    run = run_of_calls(
        calls,
        record,
        source,
        tools=map(_tools, generations),
        started_at=seconds_of(str(_field(generations[0], "startTime") or "") or None, source),
        reward=source.number("the score reward", scores.get("reward"), least=-math.inf),
    )
    yield episode(NAME, run, split)


def _call(row: Mapping[str, Any], source: ReadContext) -> ModelCall | None:
    """The call behind a row; None for one that came to nothing."""
    answer = answer_message(row.get("output"))
    if answer is None:
        source.count_unread("a call without an answer")
        return None
    usage = _field(row, "usageDetails") or _field(row, "usage") or {}
    costs = _field(row, "costDetails") or {}
    cost = _field(row, "totalCost", "calculatedTotalCost")
    began, ended = (seconds_of(str(_field(row, name) or "") or None, source) for name in ("startTime", "endTime"))
    read = source.count("usage.input", _first(usage, "input", "promptTokens", "prompt_tokens"))
    written = source.count("usage.output", _first(usage, "output", "completionTokens", "completion_tokens"))
    return ModelCall(
        chat_messages(row.get("input")),
        answer,
        str(_field(row, "model", "providedModelName") or ""),
        prompt_tokens=read,
        completion_tokens=written,
        cost=source.number("cost", costs.get("total") if cost is None else cost),
        seconds=max(0.0, ended - began) if began and ended else 0.0,
    )


def _tools(row: Mapping[str, Any]) -> str | None:
    """The tools that were sent with the messages, or beside them."""
    sent = row.get("input")
    inside = sent.get("tools") if isinstance(sent, dict) else None
    return tools_of(inside or (_field(row, "modelParameters") or {}).get("tools"))


def _field(row: Mapping[str, Any], *names: str) -> Any:
    """A field in either spelling: `startTime` or `start_time`."""
    for name in names:
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
        for spelling in (name, snake):
            if row.get(spelling) is not None:
                return row[spelling]
    return None


def _first(values: Any, *names: str) -> Any:
    return next((values[name] for name in names if isinstance(values, dict) and values.get(name) is not None), None)
