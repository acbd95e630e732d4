"""Traces whose spans an exporter wrote in several batches, joined again before they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flywheel.datasets.formats.otel import OUTPUT
from flywheel.datasets.formats.parsing import Raw, too_long

Spans = dict[str, list[Any]]
"""Spans by trace."""


@dataclass(slots=True)
class _Trace:
    """A trace that is not whole yet."""

    first: Raw
    spans: list[Any] = field(default_factory=list)
    bytes: int = 0


def join_traces(records: Callable[[], Iterator[Raw]], most: int) -> Iterator[Raw]:
    """The records of a file, read twice, with traces that go over several of them as a record each.

    Memory holds the traces that are open, each of at most `most` bytes.
    """
    lines: dict[str, list[int]] = {}
    for raw in records():
        for trace in _chats(_spans(raw)):
            lines.setdefault(trace, []).append(raw.line)
    several = {trace for trace, seen in lines.items() if len(seen) > 1}
    waiting: dict[str, _Trace] = {}
    for raw in records():
        spans = _spans(raw)
        chats = _chats(spans)
        if not several.intersection(chats):
            if chats or not spans or not spans.keys() <= lines.keys():
                yield raw
            continue
        for trace, chat_spans in chats.items():
            held = waiting.setdefault(trace, _Trace(raw))
            held.spans += chat_spans
            held.bytes += len(raw.text)
            if lines[trace][-1] == raw.line:
                yield _record(waiting.pop(trace), most)


def _record(trace: _Trace, most: int) -> Raw:
    first = trace.first
    if trace.bytes > most * 2:
        return Raw(first.path, first.line, b"", too_long(most))
    export = {"resourceSpans": [{"scopeSpans": [{"spans": trace.spans}]}]}
    return Raw(first.path, first.line, json.dumps(export).encode())


def _spans(raw: Raw) -> Spans:
    """The spans of a record; none of what is no export."""
    spans: Spans = {}
    try:
        for resource in json.loads(raw.text)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    spans.setdefault(str(span["traceId"]), []).append(span)
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return spans


def _chats(spans: Spans) -> Spans:
    """Of each trace the spans that hold what a model put out."""
    chats = {trace: [span for span in trace_spans if _is_chat(span)] for trace, trace_spans in spans.items()}
    return {trace: trace_spans for trace, trace_spans in chats.items() if trace_spans}


def _is_chat(span: Any) -> bool:
    attributes = span.get("attributes") if isinstance(span, dict) else None
    return any(isinstance(each, dict) and each.get("key") == OUTPUT for each in attributes or ())
