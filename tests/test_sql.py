"""`flywheel sql` reads and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.datasets.lake import Lake
from flywheel.datasets.views import VIEWS
from flywheel.errors import QueryError
from flywheel.trajectory import Trajectory

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
        filled.sql(statement.replace("{out}", str(out)))
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert filled.sql("select count(*) as n from trajectories").to_pylist() == [{"n": 8}]


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_answers_even_when_empty(lake: Lake, view: str) -> None:
    assert lake.sql(f"from {view}").num_rows == 0
