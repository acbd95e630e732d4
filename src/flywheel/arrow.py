"""The data contract as Arrow: one schema a table, and conversions both ways without loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import pyarrow as pa

from flywheel.column import Column
from flywheel.message_columns import (
    MESSAGE,
    MESSAGES,
    message_array,
    message_lists,
    with_final_messages,
    with_messages,
)
from flywheel.messages import Message
from flywheel.trajectory import (
    Item,
    Route,
    RouteTo,
    Segment,
    Split,
    Step,
    StopReason,
    Trajectory,
    TrajectoryOrigin,
    Verdict,
)

_T = TypeVar("_T")

Columns = dict[str, tuple[pa.DataType, str]]
"""Column → its type and what it holds."""
_OWNER: Columns = {"trajectory_id": (pa.string(), "the episode")}
_ITEM = pa.struct(
    [("name", pa.string()), ("points", pa.float64()), ("fraction", pa.float64()), ("evidence", pa.string())]
)
_TYPES = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int32(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[float, ...]: pa.list_(pa.float32()),
    tuple[tuple[str, ...], ...]: pa.list_(pa.list_(pa.string())),
    tuple[tuple[float, ...], ...]: pa.list_(pa.list_(pa.float32())),
    tuple[Item, ...]: pa.list_(_ITEM),
    Message: MESSAGE,
    tuple[Message, ...]: MESSAGES,
}


def _columns_of(record: type) -> Columns:
    """The columns of a class of records, from the `Column` beside each field."""
    hints = get_type_hints(record, include_extras=True)
    columns = {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    return {
        name: (pa.type_for_alias(column.type) if column.type else _arrow_type(hints[name].__origin__), column.holds)
        for name, column in columns.items()
    }


def _arrow_type(hint: Any) -> pa.DataType:
    if isinstance(hint, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return _TYPES[str if isinstance(hint, type) and issubclass(hint, str) else hint]


COLUMNS: dict[str, Columns] = {
    "trajectories": _columns_of(Trajectory),
    "steps": _OWNER | _columns_of(Step),
    "images": _OWNER
    | {
        "sha256": (pa.string(), "what steps.screenshot names"),
        "media_type": (pa.string(), "as image/png"),
        "data": (pa.binary(), "the bytes"),
    },
    "verdicts": _OWNER | _columns_of(Verdict),
    "routes": _OWNER | _columns_of(Route),
    "segments": _OWNER | _columns_of(Segment),
    "outcomes": _OWNER
    | {
        "outcome_id": (pa.string(), "its own id"),
        "success": (pa.bool_(), "did the run succeed? NULL: not told"),
        "score": (pa.float64(), "0 to 1; NULL: not told"),
        "comment": (pa.string(), "in words"),
        "who": (pa.string(), "who reported it"),
        "created_at": (pa.float64(), "when"),
    },
    "annotations": _OWNER
    | {
        "annotation_id": (pa.string(), "its own id"),
        "kind": (pa.string(), "tag, note or label"),
        "value": (pa.string(), "the tag, the note's text; of a label succeeded or failed"),
        "withdrawn": (pa.bool_(), "true where this takes back what was said before"),
        "who": (pa.string(), "the person"),
        "created_at": (pa.float64(), "when"),
    },
    "credits": _OWNER
    | {
        "index": (pa.int32(), "the step where the decision fell"),
        "level": (
            pa.string(),
            "planner, executor or switch (is the subgoal done?); flat where levels are not told apart",
        ),
        "method": (pa.string(), "name, as gae or hae"),
        "arguments": (pa.string(), "JSON"),
        "advantage": (pa.float64(), "how much better than expected the decision was"),
        "return": (pa.float64(), 'what followed; quote it: "return"'),
        "source": (pa.string(), "what computed it, with its version"),
    },
    "teacher_logprobs": _OWNER
    | {
        "policy_id": (pa.string(), "the teacher"),
        "role": (pa.string(), "planner, executor or flat"),
        "draw": (pa.string(), "digest of how rows are drawn and renamed"),
        "epoch": (pa.int32(), "0, 1, …"),
        "row": (pa.int32(), "place of the row in its epoch"),
        "k": (pa.int32(), "tokens that are told of each target"),
        "top_ids": (pa.list_(pa.int32()), "k tokens a target, one target after another"),
        "top_logprobs": (pa.list_(pa.float32()), "their log-probabilities"),
    },
    "embeddings": _OWNER
    | {
        "index": (pa.int32(), "the step, or -1 for the whole episode"),
        "model": (pa.string(), "what made it"),
        "vector": (pa.list_(pa.float32()), "list of float"),
    },
    "fingerprints": _OWNER
    | {
        "actions": (pa.string(), "digest of task and actions"),
        "record": (pa.string(), "digest of all that one playing leaves, its timings included; empty where it has none"),
        "essential": (pa.string(), "digest of task and actions, less loops that led back to the same state"),
        "signature": (pa.list_(pa.uint32()), "MinHash of actions and what they met"),
        "bands": (pa.list_(pa.uint64()), "digests of runs of the signature; one in common makes a candidate"),
        "duplicate_of": (pa.string(), "the earlier training episode that says the same, or NULL"),
        "similarity": (pa.float64(), "1 for equal actions, else the estimated Jaccard similarity to it, or NULL"),
        "source": (pa.string(), "what computed it, with its version"),
    },
}
"""The columns of every Parquet file of the lake, by kind: the one place that says what each holds."""
EMPTY_IS_NULL = frozenset(
    name
    for record in (Step, Trajectory)
    for name, hint in get_type_hints(record, include_extras=True).items()
    if any(isinstance(column, Column) and column.empty_is_null for column in getattr(hint, "__metadata__", ()))
)
"""Columns whose empty text is stored as NULL."""
ARROW_SCHEMAS = {
    kind: pa.schema([(name, column_type) for name, (column_type, _) in columns.items()])
    for kind, columns in COLUMNS.items()
}
_STEP, _TRAJECTORY, _IMAGE = ARROW_SCHEMAS["steps"], ARROW_SCHEMAS["trajectories"], ARROW_SCHEMAS["images"]
_VERDICT, _ROUTE, _SEGMENT = ARROW_SCHEMAS["verdicts"], ARROW_SCHEMAS["routes"], ARROW_SCHEMAS["segments"]
CHUNK_STEPS = 2048
CHUNK_IMAGES = 64


def _columns(records: Sequence[object], schema: pa.Schema) -> pa.Table:
    """A row a record. Reading column by column makes no object a row, which the garbage collector would visit."""
    return pa.table(
        [pa.array(list(map(attrgetter(field.name), records)), type=field.type) for field in schema], schema=schema
    )


def trajectories_to_arrow(trajectories: Sequence[Trajectory]) -> pa.Table:
    """A row a trajectory, without its steps."""
    final_inputs = [trajectory.final_inputs for trajectory in trajectories]
    ready = {"final_inputs": message_lists(final_inputs)}
    return _stored(trajectories, _TRAJECTORY, ready, {"final_observation": final_inputs})


def steps_to_arrow(trajectories: Sequence[Trajectory]) -> Iterator[pa.Table]:
    """A row a step, in the order of the trajectories; tables of bounded length, so that long episodes need no copy."""
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    ids = [trajectory.trajectory_id for trajectory in trajectories for _ in trajectory.steps]
    for start in range(0, len(steps), CHUNK_STEPS):
        part = slice(start, start + CHUNK_STEPS)
        inputs, outputs = [step.inputs for step in steps[part]], [step.output for step in steps[part]]
        yield _stored(
            steps[part],
            _STEP,
            {
                "trajectory_id": pa.array(ids[part], pa.string()),
                "inputs": message_lists(inputs),
                "output": message_array(outputs),
            },
            {"observation": inputs, "action": outputs, "thought": outputs},
        )


def _stored(
    records: Sequence[object],
    schema: pa.Schema,
    ready: Mapping[str, pa.Array],
    derived: Mapping[str, Sequence[object | None]],
) -> pa.Table:
    """A row a record, as files hold it. `ready`: columns that are arrays already. `derived`: columns that are NULL in
    rows whose messages say them."""
    columns = []
    for field in schema:
        if field.name in ready:
            columns.append(ready[field.name])
            continue
        values = list(map(attrgetter(field.name), records))
        if field.name in derived and any(derived[field.name]):
            values = [
                value if message is None else None for value, message in zip(values, derived[field.name], strict=True)
            ]
        elif field.name in EMPTY_IS_NULL:
            values = [value or None for value in values]
        columns.append(pa.array(values, type=field.type))
    return pa.table(columns, schema=schema)


def images_to_arrow(trajectories: Sequence[Trajectory]) -> Iterator[pa.Table]:
    """A row an image, each once a trajectory."""
    rows = (
        (trajectory.trajectory_id, image) for trajectory in trajectories for image in dict.fromkeys(trajectory.images)
    )
    for chunk in batched(rows, CHUNK_IMAGES):
        yield pa.Table.from_pylist(
            [
                {"trajectory_id": owner, "sha256": image.sha256, "media_type": image.media_type, "data": image.data}
                for owner, image in chunk
            ],
            _IMAGE,
        )


def trajectories_from_arrow(trajectories: pa.Table, steps: pa.Table) -> list[Trajectory]:
    """Inverse of `trajectories_to_arrow` and `steps_to_arrow`; steps may come in any order."""
    by_id: dict[str, list[Step]] = defaultdict(list)
    for row in steps.select(_STEP.names).to_pylist():
        owner = row.pop("trajectory_id")
        row |= {name: _tuple(row[name]) for name in ("valid_actions", "logprobs")}
        row |= {name: _tuples(row[name]) for name in ("top_tokens", "top_logprobs")}
        by_id[owner].append(Step(**with_messages(_with_empty(row))))
    return [
        Trajectory(
            **{
                **with_final_messages(_with_empty(row)),
                "split": Split(row["split"]),
                "stop_reason": StopReason(row["stop_reason"]),
                "origin": TrajectoryOrigin(row["origin"]),
            },
            steps=tuple(sorted(by_id[row["trajectory_id"]], key=lambda step: step.index)),
        )
        for row in trajectories.select(_TRAJECTORY.names).to_pylist()
    ]


def verdicts_to_arrow(verdicts: Sequence[Verdict]) -> pa.Table:
    """One row a verdict; `items` is a list of structs."""
    plain = _columns(verdicts, pa.schema([field for field in _VERDICT if field.name != "items"]))
    items = [item for verdict in verdicts for item in verdict.items]
    columns = [pa.array(list(map(attrgetter(field.name), items)), field.type) for field in _ITEM]
    offsets = pa.array(list(accumulate((len(verdict.items) for verdict in verdicts), initial=0)), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(_ITEM)))
    return plain.append_column(_VERDICT.field("items"), lists).select(_VERDICT.names)


def verdicts_from_arrow(table: pa.Table) -> list[Verdict]:
    return [
        Verdict(**{**row, "items": tuple(Item(**item) for item in row["items"])})
        for row in table.select(_VERDICT.names).to_pylist()
    ]


def routes_to_arrow(routes: Sequence[Route]) -> pa.Table:
    return _columns(routes, _ROUTE)


def routes_from_arrow(table: pa.Table) -> list[Route]:
    return [Route(**{**row, "route": RouteTo(row["route"])}) for row in table.select(_ROUTE.names).to_pylist()]


def segments_to_arrow(segments: Sequence[Segment]) -> pa.Table:
    return _columns(segments, _SEGMENT)


def segments_from_arrow(table: pa.Table) -> list[Segment]:
    return [Segment(**row) for row in table.select(_SEGMENT.names).to_pylist()]


def batched(values: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Consecutive tuples of up to `size` values."""
    iterator = iter(values)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


def _with_empty(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a file with the empty text that it stores as NULL."""
    return row | {name: "" for name in EMPTY_IS_NULL & row.keys() if row[name] is None}


def _tuple(values: Iterable[_T] | None) -> tuple[_T, ...] | None:
    return None if values is None else tuple(values)


def _tuples(rows: Iterable[Iterable[_T]] | None) -> tuple[tuple[_T, ...], ...] | None:
    return None if rows is None else tuple(map(tuple, rows))
