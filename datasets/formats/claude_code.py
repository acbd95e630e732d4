"""Claude Code's session logs: a line an entry, a file a session; sub-agents' entries are marked as a side chain.

Entries of one answer (blocks of one message id) are one turn. Where the context was compacted, the summary is what the
agent was told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from flywheel.datasets.formats.chat_messages import ChatMessage, read_messages
from flywheel.datasets.formats.joining import join_rows
from flywheel.datasets.formats.parsing import Raw
from flywheel.datasets.formats.records import ReadContext, Run, episode, explain, identity_of, seconds_of
from flywheel.datasets.formats.turns import ReadMessage, conversation_of
from flywheel.errors import RecordError
from flywheel.trajectory import Split, Trajectory
from flywheel.unknowns import known_sum

NAME = "claude-code"
SPOKEN = ("user", "assistant")
READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""What an answer's usage counts as read."""


def join_session(records: Callable[[], Iterator[Raw]], most: int) -> Iterator[Raw]:
    """The entries of a file, a record for each session, and one for the side chain of each, which names it. Lines that
    are no entries come as they are, to be quarantined with their place."""
    return join_rows(records, most, _key, _session, is_aside=_is_aside)


def _key(entry: Any) -> tuple[str, bool]:
    """(session, is it of a side chain?)."""
    return str(entry["sessionId"]), bool(entry.get("isSidechain"))


def _session(key: tuple[str, bool], entries: Mapping[tuple[str, bool], list[Any]]) -> dict[str, Any]:
    """The record of a session, or of its side chain."""
    name, is_side = key
    record = {"session": name, "entries": entries[key]}
    if is_side and (main := entries.get((name, False))):
        record["parent"] = identity_of(NAME, {"session": name, "entries": main})
    return record


def _is_aside(raw: Raw) -> bool:
    """Is it a line about the session, as its summary or a snapshot of files?"""
    try:
        return isinstance(json.loads(raw.text).get("type"), str)
    except (ValueError, AttributeError, RecursionError):
        return False


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """One session. Nobody says whether it succeeded."""
    entries = record.get("entries") if isinstance(record, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecordError("entries: not a list of entries of a session")
    spoken = [entry for entry in entries if entry.get("type") in SPOKEN and not entry.get("isMeta")]
    for entry in entries:
        if entry.get("type") not in SPOKEN:
            source.count_unread(f"an entry of type {entry.get('type')}")
    try:
        messages = [message for entry in _merged(spoken) for message in _read_entry(entry, source)]
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    conversation = conversation_of(messages)
    run = Run(
        conversation.instruction,
        conversation.turns,
        next((str(entry["message"]["model"]) for entry in spoken if "model" in entry["message"]), "unknown"),
        str(next((entry["version"] for entry in spoken if "version" in entry), "1")),
        record,
        conversation.rest,
        system=conversation.system,
        started_at=seconds_of(next((str(e["timestamp"]) for e in spoken if "timestamp" in e), None), source),
        images=conversation.images,
        parent=str(record["parent"]) if record.get("parent") else None,
    )
    yield episode(NAME, run, split)


def _merged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries, those that hold blocks of one answer as one, where the first of them stood: results between its blocks
    follow it."""
    merged: list[dict[str, Any]] = []
    places: dict[Any, int] = {}
    for entry in entries:
        message = entry.get("message")
        if not isinstance(message, dict):
            raise RecordError("an entry without its message")
        name = message.get("id")
        if isinstance(name, str) and name in places:
            before = merged[places[name]]
            blocks = [*_blocks(before["message"].get("content")), *_blocks(message.get("content"))]
            merged[places[name]] = {**before, "message": {**message, "content": blocks}}
            continue
        if isinstance(name, str):
            places[name] = len(merged)
        merged.append(entry)
    return merged


def _blocks(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content or ""}]


def _read_entry(entry: Mapping[str, Any], source: ReadContext) -> list[ReadMessage]:
    message = entry["message"]
    raw = ChatMessage.model_validate({"role": message.get("role"), "content": message.get("content")})
    messages = read_messages(raw, source)
    usage = message.get("usage") if isinstance(message.get("usage"), dict) else None
    if message.get("role") != "assistant" or usage is None:
        return messages
    counts = [source.count(f"usage.{name}", usage.get(name)) for name in READ if name in usage]
    *others, answer = messages
    written = source.count("usage.output_tokens", usage.get("output_tokens"))
    turn = replace(answer.turn, prompt_tokens=known_sum(counts), completion_tokens=written)
    return [*others, replace(answer, turn=turn)]
