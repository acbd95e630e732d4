"""Datasets: a dataset reads the same for ever, its files are the same bytes each time, and training can stream it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.compaction import collect_garbage, compact
from flywheel.datasets.maintenance.lineage import revoke
from flywheel.datasets.versions.parquet_export import write_shards
from flywheel.datasets.versions.stream import DatasetStream
from flywheel.datasets.versions.versions import DatasetVersion, create, difference, find, ids, snapshot_of
from flywheel.errors import FlywheelError, LakeError
from flywheel.trajectory import Trajectory


@pytest.fixture
def filled(lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]) -> Lake:
    for start in range(0, len(golden), 2):
        lake.append(golden[start : start + 2], "golden")
    lake.append(noisy, "noisy")
    return lake


@pytest.fixture
def dataset(filled: Lake) -> DatasetVersion:
    return create(filled, "all", "true")


def test_the_same_again_is_the_version_that_exists(filled: Lake) -> None:
    first = create(filled, "wins", "success")
    assert create(filled, "wins", "success") == first
    assert first.title == "wins@v1"
    assert find(filled, "wins") == find(filled, "wins@v1") == first
    assert set(ids(filled, first)) == set(
        filled.sql("select trajectory_id from trajectories where success")[0].to_pylist()
    )


def test_a_new_version_is_what_the_lake_holds_then(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:5], "a")
    first = create(lake, "all", "true")
    lake.append(golden[5:], "b")
    second = create(lake, "all", "true")
    assert (first.trajectories, second.trajectories) == (5, len(golden))
    assert len(ids(lake, first)) == 5
    assert {name: len(found) for name, found in difference(lake, first, second).items()} == {
        "removed": 0,
        "added": len(golden) - 5,
        "kept": 5,
    }
    assert snapshot_of(lake, "all@v1") == 1
    assert snapshot_of(lake, "2") == 2


def test_a_sample_is_a_function_of_its_seed(filled: Lake) -> None:
    draws = [ids(filled, create(filled, f"draw-{seed}", "true", sample=6, seed=seed)) for seed in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    assert all(len(draw) == 6 for draw in draws)


@pytest.mark.parametrize(
    ("name", "condition", "problem"),
    [
        ("Bad Name", "true", "no name for a dataset"),
        ("none", "false", "nothing in the lake"),
        ("wrong", "nonsense > 1", "nonsense"),
        ("sly", "true) union (select 'x'", "not a condition"),
        ("files", "exists (from read_text('/etc/passwd'))", "."),
    ],
)
def test_bad_pins_are_refused(filled: Lake, name: str, condition: str, problem: str) -> None:
    with pytest.raises(FlywheelError, match=problem) as caught:
        create(filled, name, condition)
    assert "\n" not in str(caught.value)
    assert filled.sql("from dataset_versions").num_rows == 0
    with pytest.raises(LakeError, match="no dataset"):
        find(filled, name)


def test_shards_are_the_same_bytes_on_any_day(
    filled: Lake, dataset: DatasetVersion, tmp_path: Path, golden: list[Trajectory]
) -> None:
    before = write_shards(filled, dataset, tmp_path / "before", per_shard=7)
    compact(filled, least=2)
    collect_garbage(filled, keep_snapshots=0, grace=0.0)
    after = write_shards(filled, dataset, tmp_path / "after", per_shard=7)
    assert [path.name for path in before] == [path.name for path in after]
    assert [path.read_bytes() for path in before] == [path.read_bytes() for path in after]
    with pytest.raises(LakeError, match="not empty"):
        write_shards(filled, dataset, tmp_path / "after")


def test_hugging_face_datasets_reads_the_shards(filled: Lake, dataset: DatasetVersion, tmp_path: Path) -> None:
    write_shards(filled, dataset, tmp_path / "shards", per_shard=9)
    for kind in ("trajectories", "steps"):
        rows = load_dataset(str(tmp_path / "shards"), kind, split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.num_rows == filled.sql(f"from {kind}").num_rows
        assert set(rows["trajectory_id"]) == set(ids(filled, dataset))


def test_the_card_counts_what_is_there(dataset: DatasetVersion) -> None:
    assert f"{dataset.trajectories} trajectories of snapshot {dataset.snapshot}" in dataset.card
    for word in ("expert", "noisy_expert", "train", "cookingworld", "Licence", "Known biases", "not been curated"):
        assert word in dataset.card


@given(
    st.integers(1, 9), st.integers(1, 3), st.integers(1, 30), st.integers(0, 9), st.integers(0, 5), st.integers(0, 2)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
def test_ranks_read_everything_once_and_resume_anywhere(
    filled: Lake, batch: int, ranks: int, shuffle: int, stop: int, seed: int, column: int
) -> None:
    dataset = create(filled, "all", "true")
    columns = (("trajectory_id", "index", "action"), ("action", "trajectory_id", "index"), None)[column]

    def read(rank: int, start: int = 0) -> list[pa.Table]:
        options = {"columns": columns, "batch": batch, "shuffle": shuffle, "seed": seed}
        return list(DatasetStream(filled, dataset, rank=rank, ranks=ranks, start_batch=start, **options))  # type: ignore[arg-type]

    keys = []
    for rank in range(ranks):
        whole = read(rank)
        assert read(rank, stop) == whole[stop:]
        for table in whole:
            rows = list(zip(table["trajectory_id"].to_pylist(), table["index"].to_pylist(), strict=True))
            assert len({one for one, _ in rows}) <= batch
            assert [index for _, index in rows] == [
                n for row in dict.fromkeys(x for x, _ in rows) for n in range(sum(x == row for x, _ in rows))
            ]
            keys += rows
    assert len(keys) == len(set(keys)) == dataset.steps


def test_epochs_differ_and_workers_share(filled: Lake, dataset: DatasetVersion) -> None:
    def order(epoch: int) -> list[str]:
        tables = DatasetStream(filled, dataset, batch=3, shuffle=5, epoch=epoch)
        return [one for table in tables for one in dict.fromkeys(table["trajectory_id"].to_pylist())]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))
    loader = DataLoader(DatasetStream(filled, dataset, batch=3, shuffle=5), batch_size=None, num_workers=2)
    read = [one for table in loader for one in dict.fromkeys(table["trajectory_id"].to_pylist())]
    assert sorted(read) == sorted(order(0))


def test_revocation_flags_the_pin_and_leaves_it_readable(filled: Lake, dataset: DatasetVersion) -> None:
    one = ids(filled, dataset)[0]
    assert revoke(filled, [one], "licence withdrawn") == {"revoked": 1, "datasets": ["all@v1"], "students": []}
    assert revoke(filled, [one], "again")["revoked"] == 0
    assert find(filled, "all").flag == "holds revoked trajectories: licence withdrawn"
    assert len(ids(filled, dataset)) == dataset.trajectories
    with pytest.raises(LakeError, match="nothing was revoked"):
        revoke(filled, [one, "unknown"], "typo")


def test_a_large_file_is_read_in_parts_and_in_any_order_of_its_rows(
    lake: Lake, golden: list[Trajectory], noisy: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With row groups of a few steps; also where the files of a segment disagree in their order."""
    monkeypatch.setattr("flywheel.datasets.lake.files.GROUP_ROWS", 7)
    everyone = [*golden, *noisy]
    lake.append(everyone, "episodes")
    assert lake.trajectories([trajectory.trajectory_id for trajectory in everyone[::5]]) == everyone[::5]
    stream = DatasetStream(lake, create(lake, "all", "true"), batch=4, shuffle=3)
    assert sum(table.num_rows for table in stream) == sum(trajectory.length for trajectory in everyone)
    (name,) = lake.parts_of([golden[0].trajectory_id])
    path, _ = lake.source(name, "trajectories")
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), path)
    assert lake.trajectories([trajectory.trajectory_id for trajectory in everyone[::5]]) == everyone[::5]
