"""The same lake on SQLite and a folder, on PostgreSQL and a folder, on PostgreSQL and S3-compatible storage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flywheel.arrow import routes_to_arrow
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.url import parse_lake_url
from flywheel.datasets.maintenance.check import check, repair
from flywheel.datasets.maintenance.compaction import collect_garbage, compact
from flywheel.datasets.maintenance.retention import purge
from flywheel.datasets.versions.stream import DatasetStream
from flywheel.datasets.versions.versions import create, ids
from flywheel.errors import ConfigError, LakeError, QueryError
from flywheel.trajectory import Route, RouteTo, Trajectory
from tests.servers import PostgreSQL

ROOT = Path(__file__).parents[1]
EVERYTHING = "select t.*, s.* from trajectories t join steps s using (trajectory_id) order by t.trajectory_id, s.index"


def test_what_goes_in_comes_out_once(any_lake: Lake, golden: list[Trajectory]) -> None:
    assert any_lake.append(golden[:5], "a") == 5
    assert any_lake.append([*golden[3:], golden[7]], "b") == len(golden) - 5
    assert any_lake.append(golden, "c") == 0
    assert any_lake.trajectories([trajectory.trajectory_id for trajectory in golden]) == golden
    routes = [Route(trajectory.trajectory_id, RouteTo.SUPERVISED, True, "good", "test") for trajectory in golden]
    assert any_lake.append_facts("routes", routes_to_arrow(routes), "routes") == len(golden)
    assert any_lake.sql("select count(*) as n, sum(verified) as v from trajectories").to_pylist() == [
        {"n": len(golden), "v": len(golden)}
    ]
    assert any_lake.sql("select count(*) as n from trajectories", at=1).to_pylist() == [{"n": 5}]
    assert check(any_lake) == []


def test_writers_at_once(any_lake: Lake, golden: list[Trajectory]) -> None:
    parts = [golden[start : start + 3] for start in (0, 2, 4, 5, 1, 3)]

    def work(part: list[Trajectory]) -> int:
        with Lake(any_lake.place) as mine:
            return mine.append(part, "race")

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, parts)) == len(golden)
    found = any_lake.sql("select trajectory_id as id from trajectories")["id"].to_pylist()
    assert sorted(found) == sorted(trajectory.trajectory_id for trajectory in golden)


def test_upkeep_and_pins(any_lake: Lake, golden: list[Trajectory]) -> None:
    for trajectory in golden:
        any_lake.append([trajectory], "episode")
    dataset = create(any_lake, "some", "length > 0")
    before = any_lake.sql(EVERYTHING)
    assert compact(any_lake, least=2) == len(golden)
    assert any_lake.sql(EVERYTHING) == before
    assert sum(table.num_rows for table in DatasetStream(any_lake, dataset)) == sum(
        trajectory.length for trajectory in golden
    )
    assert len(ids(any_lake, dataset)) == len(golden)
    gone = golden[0].trajectory_id
    assert purge(any_lake, [gone], "asked for") == 1
    assert any_lake.append(golden, "again") == 0
    any_lake.append_facts(
        "routes", routes_to_arrow([Route(golden[1].trajectory_id, RouteTo.SUPERVISED, True, "", "")]), "r"
    )
    collect_garbage(any_lake, keep_snapshots=0, grace=0.0)
    assert gone not in any_lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    assert check(any_lake) == []


def test_damage_is_found_and_set_aside(any_lake: Lake, golden: list[Trajectory]) -> None:
    any_lake.append(golden[:4], "a")
    any_lake.append(golden[4:], "b")
    (victim,) = any_lake.parts_of([golden[0].trajectory_id])
    any_lake.storage.delete([f"{victim}.steps.parquet"])
    with pytest.raises(LakeError, match="is missing; see: flywheel lake check"):
        any_lake.sql("select 1")
    (problem,) = check(any_lake)
    assert problem.reason == "is missing"
    (aside,) = repair(any_lake, [problem])
    assert "quarantine" in aside
    assert check(any_lake) == []
    assert any_lake.append(golden, "again") == 4
    assert any_lake.trajectories([trajectory.trajectory_id for trajectory in golden]) == golden


def test_sql_reads_no_other_file(any_lake: Lake, golden: list[Trajectory]) -> None:
    any_lake.append(golden, "a")
    stray = any_lake.storage.address("stray.parquet")
    for statement in (
        f"from read_parquet('{stray}')",
        f"copy (select 1) to '{stray}'",
        "from read_text('/etc/passwd')",
    ):
        with pytest.raises(QueryError):
            any_lake.sql(statement)


def test_a_lake_by_url(any_lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    any_lake.append(golden, "a")
    url = any_lake.place.files
    if any_lake.place.catalog.get_backend_name() != "sqlite":
        url = f"{any_lake.place.catalog.render_as_string(hide_password=False)}?files={url}"
    config = load(ROOT / "configs" / "smoke.toml", [f"data_dir='{tmp_path / 'mine'}'", f"lake.url='{url}'"])
    for lake in (Lake.open(url), Lake.of(config)):
        with lake:
            frame = lake.sql("select trajectory_id, success from trajectories order by 1").to_pandas()
            assert sorted(frame["trajectory_id"]) == sorted(trajectory.trajectory_id for trajectory in golden)
    assert (tmp_path / "mine" / "staging").is_dir()


def test_a_server_that_is_gone_is_told_in_one_line() -> None:
    with pytest.raises(LakeError, match="does not answer") as raised:
        Lake("postgresql://me@127.0.0.1:9/none?files=/tmp/none")
    assert "\n" not in str(raised.value)


def test_passwords_stay_out_of_urls_and_settings() -> None:
    url = "postgresql://me:secret@127.0.0.1:9/none?files=/tmp/none"
    with pytest.raises(LakeError, match="PGPASSWORD") as raised:
        Lake(url)
    with pytest.raises(ConfigError, match="PGPASSWORD") as refused:
        load(ROOT / "configs" / "smoke.toml", [f"lake.url='{url}'"])
    assert "secret" not in f"{raised.value}{refused.value}"


def test_a_database_without_a_lake_is_left_as_it_is(postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = f"{postgresql.new_database()}?files={tmp_path}"
    with pytest.raises(LakeError, match="no lake at"):
        Lake(url)
    config = load(ROOT / "configs" / "smoke.toml", [f"data_dir='{tmp_path}'", f"lake.url='{url}'"])
    assert not Lake.exists(config)
    with Lake(url, create=True):
        assert Lake.exists(config)


def test_storage_that_is_gone_is_told_in_one_line(
    tmp_path: Path, golden: list[Trajectory], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lake(f"sqlite:///{tmp_path / 'catalog.sqlite'}?files={bucket}-nowhere/lake", create=True) as lake:
        for work in (lambda: lake.append(golden, "a"), lambda: lake.storage.listing()):
            with pytest.raises(LakeError) as raised:
                work()
            assert "\n" not in str(raised.value)
        assert lake.snapshot() == 0
        assert list(lake.staging.iterdir()) == []


def test_the_cache_forgets_what_has_left_the_lake(
    tmp_path: Path, golden: list[Trajectory], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.datasets.lake.storage.SETTLED", 0.0)
    place = f"sqlite:///{tmp_path / 'catalog.sqlite'}?files={bucket}/{tmp_path.name}"
    with (
        Lake(parse_lake_url(place, tmp_path / "one"), create=True) as lake,
        Lake(parse_lake_url(place, tmp_path / "two")) as other,
    ):
        lake.append(golden, "a")
        assert other.sql("from steps").num_rows
        gone = golden[0].trajectory_id
        assert gone in _cached_ids(tmp_path / "two")
        purge(lake, [gone], "asked for")
        assert other.sql("from steps").num_rows
        assert gone not in _cached_ids(tmp_path / "two")
        assert golden[1].trajectory_id in _cached_ids(tmp_path / "two")


def _cached_ids(root: Path) -> set[str]:
    tables = [pq.read_table(path, columns=["trajectory_id"]) for path in (root / "cache").iterdir()]
    return {one for table in tables for one in table["trajectory_id"].to_pylist()}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u@h/d", "does not say where its files lie"),
        ("mysql://h/d?files=x", "a catalog is a folder, sqlite:// or postgresql://"),
        ("postgresql://h:port/d?files=x", "not the URL of a lake"),
    ],
)
def test_what_is_no_lake(url: str, message: str) -> None:
    with pytest.raises(LakeError, match=message):
        parse_lake_url(url)
