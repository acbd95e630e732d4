"""Retention rules: what they select leaves the newest snapshot, versions and students keep what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert
from typer.testing import CliRunner

from flywheel.arrow import routes_to_arrow
from flywheel.cli.main import app
from flywheel.datasets.lake.catalog import LINEAGE
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.check import check
from flywheel.datasets.maintenance.compaction import collect_garbage, compact
from flywheel.datasets.maintenance.retention import due, retire, tend
from flywheel.datasets.versions.stream import DatasetStream
from flywheel.datasets.versions.versions import create, ids, tables
from flywheel.errors import LakeError, QueryError
from flywheel.trajectory import Route, RouteTo, Trajectory


@pytest.fixture
def filled(lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append(golden[:5], "some")
    lake.append(golden[5:], "others")
    routes = [Route(trajectory.trajectory_id, RouteTo.CONTINUAL, False, "", "") for trajectory in golden]
    lake.append_facts("routes", routes_to_arrow(routes), "routes")
    return lake


def test_retired_episodes_leave_the_newest_snapshot_only(filled: Lake, golden: list[Trajectory]) -> None:
    dataset = create(filled, "before", "true")
    gone, kept = golden[:2], golden[2:]
    rule = f"seed <= {gone[-1].seed}"
    assert due(filled, rule) == sorted(trajectory.trajectory_id for trajectory in gone)
    assert retire(filled, rule) == 2
    assert retire(filled, rule) == 0
    assert filled.sql("from trajectories").num_rows == len(kept)
    assert filled.sql("from routes").num_rows == len(kept)
    assert filled.sql("from trajectories", at=dataset.snapshot).num_rows == len(golden)
    assert filled.append(golden, "late retry") == 0
    compact(filled, least=2)
    collect_garbage(filled, keep_snapshots=0, grace=0.0)
    assert len(ids(filled, dataset)) == len(golden)
    assert tables(filled, dataset)[1].num_rows == sum(trajectory.length for trajectory in golden)
    assert sum(part.num_rows for part in DatasetStream(filled, dataset)) == sum(
        trajectory.length for trajectory in golden
    )
    assert filled.trajectories([trajectory.trajectory_id for trajectory in golden]) == golden
    assert check(filled) == []


def test_without_a_pin_the_files_go_too(filled: Lake, golden: list[Trajectory]) -> None:
    assert retire(filled, "true") == len(golden)
    collect_garbage(filled, keep_snapshots=0, grace=0.0)
    assert list((filled.root / "parts").iterdir()) == []
    assert filled.sql("from trajectories").num_rows == 0
    with pytest.raises(LakeError, match="no trajectory"):
        filled.trajectories([golden[0].trajectory_id])
    assert check(filled) == []


def test_what_taught_a_student_stays(filled: Lake, golden: list[Trajectory]) -> None:
    with filled.catalog.write() as connection:
        connection.execute(insert(LINEAGE).values(policy_id="student", trajectory_id=golden[3].trajectory_id))
    assert tend(filled, ["route = 'continual'"])["retired"] == len(golden) - 1
    assert filled.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist() == [
        golden[3].trajectory_id
    ]


def test_a_rule_is_one_condition(filled: Lake) -> None:
    with pytest.raises(QueryError):
        retire(filled, "true; drop table x")


def test_the_command_has_a_dry_run(filled: Lake, golden: list[Trajectory]) -> None:
    arguments = ["lake", "retire", "iteration < 5", "--data-dir", str(Path(filled.root))]
    assert CliRunner().invoke(app, [*arguments, "--dry-run"]).stdout == f"retired: {len(golden)}\n"
    assert filled.sql("from trajectories").num_rows == len(golden)
    assert CliRunner().invoke(app, arguments).stdout == f"retired: {len(golden)}\n"
    assert filled.sql("from trajectories").num_rows == 0
