"""`flywheel sql` reads and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.arrow import routes_to_arrow
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import QueryLimits
from flywheel.datasets.lake.views import VIEWS
from flywheel.errors import LakeError, QueryError
from flywheel.trajectory import Route, RouteTo, Trajectory

READS = [
    "select 1",
    "from trajectories select policy, count(*), avg(verified) group by all",
    "with x as (select 1 as a) select * from x",
    "describe steps",
    "summarize steps",
    "show tables",
]
WRITES = [
    "",
    "select 1; select 2",
    "delete from trajectories",
    "insert into trajectories select * from trajectories",
    "update trajectories set policy = 'x'",
    "create table a as select 1",
    "drop view trajectories",
    "copy (select 1) to '{out}'",
    "copy trajectories to '{out}' (format parquet)",
    "export database '{out}'",
    "attach '{out}' as other",
    "install httpfs",
    "load httpfs",
    "set memory_limit = '1GB'",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma database_list",
    "call pragma_version()",
    "explain analyze select 1",
    "checkpoint",
    "vacuum",
    "begin",
    "prepare x as select 1",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/passwd')",
    "select * from read_parquet('/etc/passwd')",
    "select * from read_json('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from glob('/etc/*')",
    "select getenv('HOME')",
    "selec 1",
    "select nothing from trajectories",
    "update extensions set loaded = true",
    "force install httpfs",
    "create macro f(x) as x",
    "create or replace temp view trajectories as select 1",
    "create secret s (type s3)",
    "alter table trajectories rename to gone",
    "truncate trajectories",
    "merge into trajectories using trajectories on true when matched then delete",
    "comment on view trajectories is 'x'",
    "set temp_directory = '{out}'",
    "set variable x = 1",
    "use memory",
    "detach memory",
    "import database '/etc'",
    "execute x",
    "select * from read_ndjson('/etc/passwd')",
    "select * from parquet_metadata('/etc/passwd')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from read_csv('https://127.0.0.1:1/x.csv')",
    "select * from read_text('{lake}/catalog.sqlite')",
    "select * from sqlite_scan('{lake}/catalog.sqlite', 'trajectory')",
    "select * from query('copy (select 1) to ''{out}'' ')",
    "with x as (delete from trajectories returning *) select * from x",
    "select 1 into outfile '{out}'",
    "select * from query_table('/etc/passwd')",
    "from '/proc/self/environ'",
    "select sys.modules",
]


@pytest.fixture
def filled(lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append(golden, "episodes")
    return lake


@pytest.mark.parametrize("statement", READS)
def test_reading_works(filled: Lake, statement: str) -> None:
    assert filled.sql(statement).num_rows > 0


@pytest.mark.parametrize("statement", WRITES)
def test_anything_else_is_refused_in_one_line(filled: Lake, tmp_path: Path, statement: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(QueryError) as caught:
        filled.sql(statement.replace("{out}", str(out)).replace("{lake}", str(filled.root)))
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert filled.sql("select count(*) as n from trajectories").to_pylist() == [{"n": 8}]


def test_time_and_memory_are_limited(filled: Lake) -> None:
    endless = "select count(*) from range(10000000) a, range(10000000) b where a.range * b.range % 7 = 3"
    with pytest.raises(QueryError, match=r"longer than 0\.3 s"):
        filled.sql(endless, limits=QueryLimits(seconds=0.3))
    hungry = "select count(distinct md5(range::varchar)) from range(5000000)"
    with pytest.raises(QueryError, match="more memory than 60MB"):
        filled.sql(hungry, limits=QueryLimits(memory="60MB"))
    with pytest.raises(QueryError):
        filled.sql("select 1", limits=QueryLimits(memory="plenty'; select 1"))
    assert not list(Path.cwd().glob(".tmp"))


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_is_documented_column_by_column_and_answers_even_when_empty(lake: Lake, view: str) -> None:
    found = lake.sql(f"from {view}")
    assert found.num_rows == 0
    assert found.column_names == list(VIEWS[view].columns)


def test_a_snapshot_is_read_as_it_was(lake: Lake, golden: list[Trajectory]) -> None:
    count = "select count(*) as n, count(verified) as curated from trajectories"
    lake.append(golden[:3], "first")
    lake.append(golden[3:], "second")
    routes = [Route(trajectory.trajectory_id, RouteTo.SUPERVISED, True, "good", "test") for trajectory in golden]
    lake.append_facts("routes", routes_to_arrow(routes), "routes")
    history = [lake.sql(count, at=number).to_pylist()[0] for number in range(4)]
    assert [tuple(row.values()) for row in history] == [(0, 0), (3, 0), (len(golden), 0), (len(golden), len(golden))]
    assert lake.sql(count).to_pylist()[0] == history[-1]
    with pytest.raises(LakeError, match="no snapshot 9"):
        lake.sql(count, at=9)


@pytest.mark.parametrize(
    "source", ["steps", '"STEPS"', "(select * from Steps)", "query_table('steps')", "query('from st' || 'eps')"]
)
def test_only_the_files_that_a_statement_names_are_opened(lake: Lake, golden: list[Trajectory], source: str) -> None:
    lake.append(golden, "episodes")
    found = lake.sql(f"select count(*) as n from {source}").to_pylist()
    assert found == [{"n": sum(trajectory.length for trajectory in golden)}]
