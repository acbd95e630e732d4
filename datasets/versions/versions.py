"""Dataset versions: named, with a number. Each is a snapshot, a condition and a digest, so it reads the same for ever.

    flywheel dataset create verified --where "verified = 1 and split = 'train'" --sample 500

Rows are drawn and ordered by a seeded hash of their id: neither threads nor files nor time decide the order.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass

import pyarrow as pa
from sqlalchemy import Row, func, insert, select

from flywheel.config.defaults import LEAK
from flywheel.datasets.lake.catalog import DATASET_VERSION
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import check_condition
from flywheel.datasets.lake.snapshots import SnapshotGoneError, check_snapshot
from flywheel.datasets.versions.card import dataset_card
from flywheel.datasets.versions.contamination import refuse_contamination
from flywheel.errors import LakeError
from flywheel.trajectory import digest

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One version of a dataset. `sample` 0 means all that the condition selects."""

    name: str
    version: int
    snapshot: int
    condition: str
    sample: int
    seed: int
    trajectories: int
    steps: int
    digest: str
    card: str
    flag: str

    @property
    def title(self) -> str:
        return f"{self.name}@v{self.version}"


def create(
    lake: Lake, name: str, condition: str, *, sample: int = 0, seed: int = 0, leak: float = LEAK
) -> DatasetVersion:
    """Record what the condition (SQL over `trajectories`) selects now. The same again is the version that exists.

    Raises `ContaminationError` if a training episode among them gives a held-out task away.
    """
    if not _NAME.fullmatch(name):
        raise LakeError(f"'{name}' is no name for a dataset; use a-z, 0-9, - and _")
    check_condition(condition)
    while True:
        try:
            return _create(lake, name, condition, sample, seed, leak)
        except SnapshotGoneError:
            continue  # upkeep was at work meanwhile; the newest snapshot will do


def _create(lake: Lake, name: str, condition: str, sample: int, seed: int, leak: float) -> DatasetVersion:
    snapshot = lake.snapshot()
    ids = _ids(lake, snapshot, condition, sample, seed)
    if not ids:
        raise LakeError(f"nothing in the lake satisfies: {condition}")
    refuse_contamination(lake, ids, leak)
    ids_digest = digest("dataset_version", sorted(ids), size=16)
    with lake.catalog.read() as connection:
        same = connection.execute(
            select(DATASET_VERSION).where(
                DATASET_VERSION.c.name == name,
                DATASET_VERSION.c.digest == ids_digest,
                DATASET_VERSION.c.condition == condition,
            )
        ).first()
    if same is not None:
        return _version_of(same)
    found_lengths = lake.sql("select trajectory_id, length from trajectories", at=snapshot).to_pydict()
    lengths = dict(zip(*found_lengths.values(), strict=True))
    steps = sum(lengths[trajectory_id] for trajectory_id in ids)
    draft = DatasetVersion(name, 0, snapshot, condition, sample, seed, len(ids), steps, ids_digest, "", "")
    card = dataset_card(lake, draft.name, snapshot, condition, ids)
    with lake.catalog.write() as connection:
        check_snapshot(connection, snapshot, lake.name)
        version = (
            connection.scalar(select(func.max(DATASET_VERSION.c.version)).where(DATASET_VERSION.c.name == name)) or 0
        ) + 1
        row = {**asdict(draft), "version": version, "sample": sample or None, "card": card, "created_at": time.time()}
        connection.execute(insert(DATASET_VERSION).values(**row))
    return find(lake, f"{name}@v{version}")


def find(lake: Lake, title: str) -> DatasetVersion:
    """`name@v3`, or the newest version of `name`."""
    name, _, version = title.partition("@v")
    query = select(DATASET_VERSION).where(DATASET_VERSION.c.name == name).order_by(DATASET_VERSION.c.version.desc())
    if version.isdigit():
        query = query.where(DATASET_VERSION.c.version == int(version))
    with lake.catalog.read() as connection:
        row = connection.execute(query).first()
    if row is None or (version and not version.isdigit()):
        raise LakeError(f"no dataset '{title}' in {lake.name}; list them with: flywheel dataset list")
    return _version_of(row)


def snapshot_of(lake: Lake, text: str) -> int:
    """What `--at` names: the number of a snapshot, or a dataset's title."""
    return int(text) if text.isdigit() else find(lake, text).snapshot


def ids(lake: Lake, dataset: DatasetVersion) -> list[str]:
    """The dataset's trajectories in its own order. Raises `LakeError` if the lake no longer gives what was recorded."""
    trajectory_ids = selected(lake, dataset)
    if digest("dataset_version", sorted(trajectory_ids), size=16) != dataset.digest:
        why = find(lake, dataset.title).flag or "the lake was changed by other means than Flywheel"
        raise LakeError(f"{dataset.title} no longer reads as it was recorded: {why}; create a new version")
    return trajectory_ids


def selected(lake: Lake, dataset: DatasetVersion) -> list[str]:
    """What the dataset's condition selects from its snapshot by now: less than was recorded, after a purge."""
    return _ids(lake, dataset.snapshot, dataset.condition, dataset.sample, dataset.seed)


def difference(lake: Lake, before: DatasetVersion, after: DatasetVersion) -> dict[str, list[str]]:
    """Ids that only the first holds, only the second, and how each group of ids is sorted."""
    first, second = set(ids(lake, before)), set(ids(lake, after))
    return {"removed": sorted(first - second), "added": sorted(second - first), "kept": sorted(first & second)}


def tables(lake: Lake, dataset: DatasetVersion) -> tuple[pa.Table, pa.Table]:
    """(trajectories, steps) of a dataset as its views show them, in the dataset's order."""
    wanted = pa.table({"trajectory_id": ids(lake, dataset), "position": range(dataset.trajectories)})
    connection = lake.connect(dataset.snapshot)
    try:
        connection.register("wanted", wanted)
        trajectories, steps = (
            connection.sql(
                f"select x.* from {view} x join wanted using (trajectory_id) order by position{more}"
            ).to_arrow_table()
            for view, more in (("trajectories", ""), ("steps", ", index"))
        )
    finally:
        connection.close()
    return trajectories, steps


def _ids(lake: Lake, snapshot: int, condition: str, sample: int, seed: int) -> list[str]:
    limit = f"limit {sample}" if sample else ""
    query = f"""select trajectory_id from trajectories where ({condition}
)
                order by md5('{seed}/' || trajectory_id), trajectory_id {limit}"""
    trajectory_ids: list[str] = lake.sql(query, at=snapshot)["trajectory_id"].to_pylist()
    return trajectory_ids


def _version_of(row: Row[tuple[object, ...]]) -> DatasetVersion:
    values = {key: value for key, value in row._mapping.items() if key != "created_at"}
    return DatasetVersion(**{**values, "sample": values["sample"] or 0})
