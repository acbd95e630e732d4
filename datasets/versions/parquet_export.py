"""A dataset version as plain Parquet files: byte-identical over runs and thread counts, ready for `load_dataset`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flywheel.datasets.lake.files import write_parquet
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.versions import DatasetVersion, tables
from flywheel.errors import LakeError

PER_SHARD = 2_000
"""Trajectories a shard."""


def write_shards(
    lake: Lake,
    dataset: DatasetVersion,
    folder: Path,
    *,
    per_shard: int = PER_SHARD,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Path]:
    """Write `trajectories/` and `steps/` with equally cut shards, and the card as README.md.

    `load_dataset(folder, "steps")` of Hugging Face datasets reads it. The card comes last: it marks a whole export.
    """
    card = folder / "README.md"
    if folder.exists() and any(folder.iterdir()):
        raise LakeError(f"{folder} is not empty; name a new folder")
    trajectories, steps = tables(lake, dataset)
    shards = max(1, -(-trajectories.num_rows // per_shard))
    written = []
    for kind in ("trajectories", "steps"):
        (folder / kind).mkdir(parents=True)
    for shard in range(shards):
        part = trajectories.slice(shard * per_shard, per_shard)
        mine = pc.is_in(steps["trajectory_id"], value_set=part["trajectory_id"].combine_chunks())
        for kind, table in (("trajectories", part), ("steps", steps.filter(mine))):
            path = folder / kind / f"{shard:05}-of-{shards:05}.parquet"
            write_parquet([_plain(table)], table.schema, path)
            written.append(path)
        progress(part.num_rows)
    card.write_text(dataset.card)
    return [*written, card]


def _plain(table: pa.Table) -> pa.Table:
    """One chunk a column, so that the same rows give the same bytes however they were read."""
    return table.combine_chunks()
