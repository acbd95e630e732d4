"""The data contract as Arrow: one schema a table, and conversions both ways without loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import accumulate, islice
from operator import attrgetter
from typing import Any, TypeVar

import pyarrow as pa

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

_STEP = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("index", pa.int32()),
        ("observation", pa.string()),
        ("event", pa.string()),
        ("note", pa.string()),
        ("place", pa.string()),
        ("state_key", pa.string()),
        ("valid_actions", pa.list_(pa.string())),
        ("thought", pa.string()),
        ("subgoal", pa.string()),
        ("switched", pa.bool_()),
        ("action", pa.string()),
        ("reward", pa.float64()),
        ("progress", pa.float64()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        ("policy_id", pa.string()),
        ("policy_version", pa.string()),
        ("trainable", pa.bool_()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("logprobs", pa.list_(pa.float32())),
        ("seconds", pa.float64()),
        ("screenshot", pa.string()),
        ("label", pa.string()),
        ("audit", pa.string()),
        ("cost", pa.float64()),
        ("top_tokens", pa.list_(pa.list_(pa.string()))),
        ("top_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)
_TRAJECTORY = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("environment", pa.string()),
        ("parameters", pa.string()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("task_id", pa.string()),
        ("task_group", pa.string()),
        ("instruction", pa.string()),
        ("policy", pa.string()),
        ("policy_id", pa.string()),
        ("policy_version", pa.string()),
        ("iteration", pa.int32()),
        ("purpose", pa.string()),
        ("attempt", pa.int32()),
        ("stop_reason", pa.string()),
        ("success", pa.bool_()),
        ("score", pa.float64()),
        ("total_reward", pa.float64()),
        ("length", pa.int32()),
        ("final_observation", pa.string()),
        ("final_event", pa.string()),
        ("final_state_key", pa.string()),
        ("error", pa.string()),
        ("parent_policy_id", pa.string()),
        ("config_digest", pa.string()),
        ("started_at", pa.float64()),
        ("schema_version", pa.int32()),
        ("extra", pa.string()),
        ("tokens", pa.int64()),
        ("cost", pa.float64()),
        ("subject", pa.string()),
        ("origin", pa.string()),
        ("origin_source", pa.string()),
        ("origin_by", pa.string()),
        ("claims", pa.string()),
    ]
)
_ITEM = pa.struct(
    [("name", pa.string()), ("points", pa.float64()), ("fraction", pa.float64()), ("evidence", pa.string())]
)
_VERDICT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("verifier", pa.string()),
        ("version", pa.string()),
        ("arguments", pa.string()),
        ("completion", pa.float64()),
        ("integrity", pa.float64()),
        ("completion_threshold", pa.float64()),
        ("integrity_threshold", pa.float64()),
        ("passed", pa.bool_()),
        ("confidence", pa.float64()),
        ("items", pa.list_(_ITEM)),
        ("raw", pa.string()),
        ("created_at", pa.float64()),
    ]
)
_ROUTE = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("route", pa.string()),
        ("verified", pa.bool_()),
        ("reason", pa.string()),
        ("source", pa.string()),
        ("created_at", pa.float64()),
    ]
)
_SEGMENT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("index", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("subgoal", pa.string()),
        ("completed", pa.bool_()),
        ("reward", pa.float64()),
        ("source", pa.string()),
    ]
)
_CREDIT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("index", pa.int32()),
        ("level", pa.string()),
        ("method", pa.string()),
        ("arguments", pa.string()),
        ("advantage", pa.float64()),
        ("return", pa.float64()),
        ("source", pa.string()),
    ]
)
_EMBEDDING = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("index", pa.int32()),
        ("model", pa.string()),
        ("vector", pa.list_(pa.float32())),
    ]
)
_IMAGE = pa.schema(
    [("trajectory_id", pa.string()), ("sha256", pa.string()), ("media_type", pa.string()), ("data", pa.binary())]
)
_FINGERPRINT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("actions", pa.string()),
        ("record", pa.string()),
        ("essential", pa.string()),
        ("signature", pa.list_(pa.uint32())),
        ("bands", pa.list_(pa.uint64())),
        ("duplicate_of", pa.string()),
        ("similarity", pa.float64()),
        ("source", pa.string()),
    ]
)
_TEACHER_LOGPROBS = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("policy_id", pa.string()),
        ("role", pa.string()),
        ("draw", pa.string()),
        ("epoch", pa.int32()),
        ("row", pa.int32()),
        ("k", pa.int32()),
        ("top_ids", pa.list_(pa.int32())),
        ("top_logprobs", pa.list_(pa.float32())),
    ]
)
ARROW_SCHEMAS = {
    "trajectories": _TRAJECTORY,
    "steps": _STEP,
    "images": _IMAGE,
    "verdicts": _VERDICT,
    "routes": _ROUTE,
    "segments": _SEGMENT,
    "credits": _CREDIT,
    "teacher_logprobs": _TEACHER_LOGPROBS,
    "embeddings": _EMBEDDING,
    "fingerprints": _FINGERPRINT,
}
CHUNK_STEPS = 2048
CHUNK_IMAGES = 64


def _columns(records: Sequence[object], schema: pa.Schema) -> pa.Table:
    """A row a record. Reading column by column makes no object a row, which the garbage collector would visit."""
    return pa.table(
        [pa.array(list(map(attrgetter(field.name), records)), type=field.type) for field in schema], schema=schema
    )


def trajectories_to_arrow(trajectories: Sequence[Trajectory]) -> pa.Table:
    """A row a trajectory, without its steps."""
    return _columns(trajectories, _TRAJECTORY)


def steps_to_arrow(trajectories: Sequence[Trajectory]) -> Iterator[pa.Table]:
    """A row a step, in the order of the trajectories; tables of bounded length, so that long episodes need no copy."""
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    ids = [trajectory.trajectory_id for trajectory in trajectories for _ in trajectory.steps]
    for start in range(0, len(steps), CHUNK_STEPS):
        part = slice(start, start + CHUNK_STEPS)
        plain = _columns(steps[part], pa.schema(list(_STEP)[1:]))
        yield plain.add_column(0, _STEP.field(0), [pa.array(ids[part], pa.string())])


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
    """Inverse of `trajectories_to_arrow` and `steps_to_arrow`; steps may come in any order.

    Columns that an older file lacks are empty.
    """
    by_id: dict[str, list[Step]] = defaultdict(list)
    names = [field.name for field in fields(Step)]
    steps = pa.concat_tables([_STEP.empty_table(), steps], promote_options="default")
    for row in steps.select(["trajectory_id", *names]).to_pylist():
        owner = row.pop("trajectory_id")
        row["valid_actions"] = _tuple(row["valid_actions"])
        row["logprobs"] = _tuple(row["logprobs"])
        row["top_tokens"], row["top_logprobs"] = _tuples(row["top_tokens"]), _tuples(row["top_logprobs"])
        row["audit"], row["cost"] = row["audit"] or "", row["cost"] or 0.0
        by_id[owner].append(Step(**row))
    return [
        replace(
            _trajectory(row),
            steps=tuple(sorted(by_id[row["trajectory_id"]], key=lambda step: step.index)),
        )
        for row in pa.concat_tables([_TRAJECTORY.empty_table(), trajectories], promote_options="default")
        .select(_TRAJECTORY.names)
        .to_pylist()
    ]


def _trajectory(row: dict[str, Any]) -> Trajectory:
    """Without its steps."""
    later = {
        "tokens": row["tokens"] or 0,
        "cost": row["cost"] or 0.0,
        "origin": TrajectoryOrigin(row["origin"]),
        "origin_source": row["origin_source"] or "",
        "origin_by": row["origin_by"] or "",
    }
    return Trajectory(**{**row, **later, "split": Split(row["split"]), "stop_reason": StopReason(row["stop_reason"])})


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


def _tuple(values: Iterable[_T] | None) -> tuple[_T, ...] | None:
    return None if values is None else tuple(values)


def _tuples(rows: Iterable[Iterable[_T]] | None) -> tuple[tuple[_T, ...], ...] | None:
    return None if rows is None else tuple(map(tuple, rows))
