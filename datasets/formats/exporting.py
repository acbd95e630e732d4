"""Exporting trajectories for other tools: a chunk at a time, into a folder that appears when it is whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flywheel.arrow import ARROW_SCHEMAS, segments_from_arrow
from flywheel.conversation import names_images
from flywheel.datasets.formats.catalog import DOCUMENTS, LINES, TUNING
from flywheel.datasets.formats.images import image_path
from flywheel.datasets.formats.tuning import dpo_row, sft_rows, sharegpt_row
from flywheel.datasets.lake.files import write_parquet, writing
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import teachable
from flywheel.datasets.lake.reading import check_condition, literal
from flywheel.errors import LakeError, named_reason
from flywheel.messages import Image
from flywheel.trajectory import Segment, Trajectory

CHUNK = 32
"""Trajectories in memory at once."""
TAUGHT = "route = 'supervised' and revoked is null"
Row = tuple[str, Any]
"""A file's name and a record for it: a line of a `.jsonl`, or the whole of any other file."""


def default_condition(format: str) -> str:
    """What an export takes by default: tuning rows come from verified training episodes only."""
    return TAUGHT if format in TUNING else "true"


def select_ids(lake: Lake, condition: str) -> list[str]:
    """Ids of the trajectories that a condition selects, in a fixed order."""
    check_condition(condition)
    trajectory_ids: list[str] = lake.sql(
        f"select trajectory_id from trajectories where ({condition}\n) order by trajectory_id"
    )["trajectory_id"].to_pylist()
    return trajectory_ids


def export(
    lake: Lake,
    folder: Path,
    format: str,
    ids: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
    leave_out: Callable[[str, str], None] = lambda trajectory_id, reason: None,
) -> dict[str, int]:
    """Write trajectories as a format into a new folder. Records by file, documents counted together.

    `leave_out` is told the id of what the format cannot hold, and why; the rest is written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise LakeError(f"{folder} is not empty; name a new folder")
    if not ids:
        raise LakeError("nothing to export: the condition selects no trajectory")
    draft = folder.with_name(f"{folder.name}.part")
    if draft.exists():
        raise LakeError(f"{draft} was left by an export that did not end; remove it and run again")
    with writing(folder):
        draft.mkdir(parents=True)
        if format == "parquet":
            counts = Counter(_parquet(lake, draft, ids))
            progress(len(ids))
        else:
            counts = Counter()
            for name, text in _texts(lake, format, ids, draft, progress, leave_out):
                _write(draft / name, text)
                counts[name if name.endswith(".jsonl") else f"*{Path(name).suffix}"] += 1
        if not counts:
            draft.rmdir()
            raise LakeError(
                "nothing to export: no task has both a verified and a failed training episode; raise collect.overlap, "
                "so that teachers with and without mistakes play the same tasks"
                if format == "dpo"
                else f"nothing to export: {format} can hold none of {len(ids)} trajectories"
            )
        if format in TUNING and len(counts) > 1:
            (draft / "README.md").write_text(_card(format, counts), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    return dict(counts)


def _card(format: str, counts: Mapping[str, int]) -> str:
    """A dataset card, by which `datasets.load_dataset(folder, "planner")` tells files apart; a lone one needs none."""
    names = sorted(counts)
    configs = "\n".join(f"- config_name: {Path(name).stem}\n  data_files: {name}" for name in names)
    rows = "\n".join(f"| `{name}` | {counts[name]} |" for name in names)
    return (
        f"---\nconfigs:\n{configs}\n---\n\n# Trajectories as {format} rows\n\n"
        f"Written by `flywheel export --format {format}`; a file is a config of the dataset.\n\n"
        f"| file | rows |\n| --- | --- |\n{rows}\n"
    )


def _write(path: Path, text: str) -> None:
    if path.suffix == ".jsonl":
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        path.write_text(text, encoding="utf-8")


def _texts(
    lake: Lake,
    format: str,
    ids: Sequence[str],
    folder: Path,
    progress: Callable[[int], None],
    leave_out: Callable[[str, str], None],
) -> Iterator[tuple[str, str]]:
    """(file, JSON) of every record; a trajectory that the format cannot hold is left out whole."""
    for start in range(0, len(ids), CHUNK):
        chunk = list(ids[start : start + CHUNK])
        trajectories = lake.trajectories(chunk)
        segments = _segments(lake, chunk) if format == "sft" else {}
        if format in TUNING:
            trajectories = [
                trajectory if trajectory.claims is None else teachable(trajectory) for trajectory in trajectories
            ]
        if format == "dpo":
            yield from ((name, _json(pair)) for name, pair in _pairs(lake, trajectories))
        for episode in trajectories if format != "dpo" else ():
            images = lake.images(episode.trajectory_id) if names_images(episode) else {}
            try:
                rows = list(_of(format, episode, segments.get(episode.trajectory_id, ()), images))
                texts = [(name, _json(row)) for name, row in rows]
            except Exception as error:
                leave_out(episode.trajectory_id, named_reason(error))
                continue
            if format == "atif":
                _write_images(folder, images)
            yield from texts
        progress(len(chunk))


def _json(record: Any) -> str:
    """As one line. Raises `ValueError` for what JSON has no words for."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _of(format: str, trajectory: Trajectory, segments: Sequence[Segment], images: Mapping[str, Image]) -> Iterator[Row]:
    if format in DOCUMENTS:
        write, suffix = DOCUMENTS[format]
        yield f"{trajectory.trajectory_id}{suffix}", write(trajectory, images)
    elif format in LINES:
        yield f"{format}.jsonl", LINES[format](trajectory, images)
    elif format == "sharegpt":
        yield "sharegpt.jsonl", sharegpt_row(trajectory, images)
    else:
        for role, row in sft_rows(trajectory, segments, images):
            yield f"{role}.jsonl", row


def _write_images(folder: Path, images: Mapping[str, Image]) -> None:
    for image in images.values():
        path = folder / image_path(image)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.data)


def _segments(lake: Lake, ids: Sequence[str]) -> dict[str, list[Segment]]:
    mine = f"list_contains({literal(ids)}, trajectory_id)"
    table = lake.sql(f'select * from segments where {mine} order by trajectory_id, "index"')
    by_trajectory: dict[str, list[Segment]] = {}
    for segment in segments_from_arrow(table):
        by_trajectory.setdefault(segment.trajectory_id, []).append(segment)
    return by_trajectory


def _pairs(lake: Lake, verified: Sequence[Trajectory]) -> Iterator[Row]:
    """Each verified episode with the failed training episodes of its task."""
    tasks = literal(sorted({good.task_id for good in verified}))
    failed = lake.sql(
        f"""select task_id, trajectory_id from trajectories
            where ours and route in ('executor', 'continual') and revoked is null and split = 'train'
              and list_contains({tasks}, task_id) order by trajectory_id"""
    ).to_pylist()
    bad = {
        trajectory.trajectory_id: trajectory
        for trajectory in lake.trajectories([row["trajectory_id"] for row in failed])
    }
    for good in verified:
        for row in failed:
            if row["task_id"] == good.task_id and (pair := dpo_row(good, bad[row["trajectory_id"]])):
                yield "dpo.jsonl", pair


def _parquet(lake: Lake, folder: Path, ids: Sequence[str]) -> dict[str, int]:
    """The stored rows of every kind, in the order of the ids."""
    connection = lake.connect()
    counts = {}
    try:
        connection.register("wanted", pa.table({"trajectory_id": list(ids)}))
        for kind, schema in ARROW_SCHEMAS.items():
            order = ', "index"' if "index" in schema.names else ""
            rows = connection.sql(
                f"select * from raw_{kind} semi join wanted using (trajectory_id) order by trajectory_id{order}"
            ).to_arrow_reader(1024)
            tables = (pa.Table.from_batches([batch]).select(schema.names).cast(schema) for batch in rows)
            written = write_parquet(tables, schema, folder / f"{kind}.parquet")
            counts[f"{kind}.parquet"] = written.rows
    finally:
        connection.close()
    return counts
