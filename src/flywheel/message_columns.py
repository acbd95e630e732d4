"""Messages as Arrow: nested columns, each text stored once.

A step that has messages stores no `observation`, `action` or `thought` beside them, and a trajectory no
`final_observation`: whoever reads derives them, in Python by `flywheel.messages`, in SQL by
`flywheel.datasets.lake.derived`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

import pyarrow as pa

from flywheel.messages import Message, ToolCall, action_of, message_of, text_of_inputs, thought_of

CALL = pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())])
MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("parts", pa.string()),
        ("reasoning", pa.string()),
        ("tool_calls", pa.list_(CALL)),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
        ("error", pa.string()),
    ]
)
MESSAGES = pa.list_(MESSAGE)


def message_array(messages: Sequence[Message | None]) -> pa.Array:
    """One message, or NULL, a row."""
    absent = [message is None for message in messages]
    if all(absent):
        return pa.nulls(len(messages), MESSAGE)
    rows = [message or Message("") for message in messages]
    columns = [
        _call_lists([row.tool_calls for row in rows])
        if field.name == "tool_calls"
        else pa.array(list(map(attrgetter(field.name), rows)), field.type)
        for field in MESSAGE
    ]
    return pa.StructArray.from_arrays(columns, fields=list(MESSAGE), mask=pa.array(absent))


def message_lists(rows: Sequence[Sequence[Message] | None]) -> pa.Array:
    """A list of messages, or NULL, a row."""
    if all(row is None for row in rows):
        return pa.nulls(len(rows), MESSAGES)
    offsets = list(accumulate((len(row or ()) for row in rows), initial=0))
    values = message_array([message for row in rows for message in row or ()])
    absent = pa.array([row is None for row in rows])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=MESSAGES, mask=absent)


def _call_lists(rows: Sequence[Sequence[ToolCall]]) -> pa.Array:
    calls = [call for row in rows for call in row]
    columns = [pa.array(list(map(attrgetter(field.name), calls)), field.type) for field in CALL]
    offsets = pa.array(list(accumulate(map(len, rows), initial=0)), pa.int32())
    values = pa.StructArray.from_arrays(columns, fields=list(CALL))
    return pa.ListArray.from_arrays(offsets, values, type=MESSAGE.field("tool_calls").type)


def with_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the step table as a step has it: messages as objects, and the text that they say."""
    inputs, output = row["inputs"], row["output"]
    if inputs is not None:
        row["inputs"] = tuple(map(message_of, inputs))
        row["observation"] = text_of_inputs(row["inputs"])
    if output is not None:
        row["output"] = answer = message_of(output)
        row |= {"action": action_of(answer), "thought": thought_of(answer)}
    return row


def with_final_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the trajectory table as a trajectory has it."""
    if row["final_inputs"] is not None:
        row["final_inputs"] = tuple(map(message_of, row["final_inputs"]))
        row["final_observation"] = text_of_inputs(row["final_inputs"])
    return row
