"""Backup and restore, between any two kinds of lake; a file of views for other tools."""

from __future__ import annotations

import uuid
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from flywheel.arrow import routes_to_arrow
from flywheel.cli.main import app
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.views import VIEWS
from flywheel.datasets.maintenance.backup import copy
from flywheel.datasets.maintenance.check import check
from flywheel.datasets.maintenance.retention import purge
from flywheel.datasets.versions.versions import create, find, ids
from flywheel.errors import LakeError
from flywheel.policies.registry import champion, crown
from flywheel.trajectory import Route, RouteTo, Trajectory
from tests.servers import PostgreSQL

EVERYTHING = "select t.*, s.* from trajectories t join steps s using (trajectory_id) order by t.trajectory_id, s.index"


def test_a_copy_answers_as_the_original(any_lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    any_lake.append(golden[:4], "some")
    dataset = create(any_lake, "pinned", "true")
    any_lake.append(golden[4:], "others")
    crown(any_lake, "student", "won")
    with Lake(tmp_path / "copy", create=True) as other:
        assert copy(any_lake, other) == 4
        assert copy(any_lake, other) == 0
        assert other.sql(EVERYTHING) == any_lake.sql(EVERYTHING)
        assert ids(other, find(other, dataset.title)) == ids(any_lake, dataset)
        assert check(other) == []
        any_lake.append_facts(
            "routes", routes_to_arrow([Route(golden[0].trajectory_id, RouteTo.SUPERVISED, True, "", "")]), "r"
        )
        purge(any_lake, [golden[7].trajectory_id], "asked for")
        assert copy(any_lake, other) == 3
        assert other.sql(EVERYTHING) == any_lake.sql(EVERYTHING)
        assert other.append(golden, "restored, and goes on") == 0
        crown(other, "next", "won")
        assert champion(other) == "next"


def test_a_restored_lake_on_postgresql_goes_on(
    lake: Lake, golden: list[Trajectory], postgresql: PostgreSQL, bucket: str
) -> None:
    lake.append(golden[:4], "some")
    crown(lake, "student", "won")
    place = f"{postgresql.new_database()}?files={bucket}/{uuid.uuid4().hex}"
    runner = CliRunner()
    done = runner.invoke(app, ["lake", "restore", str(lake.root), "--set", f"lake.url={place}"])
    assert done.exit_code == 0, done.output
    with Lake(place) as other:
        assert other.append(golden, "more") == len(golden) - 4
        crown(other, "next", "won")
        assert other.sql("select id, policy_id from champions order by id").to_pylist() == [
            {"id": 1, "policy_id": "student"},
            {"id": 2, "policy_id": "next"},
        ]
    again = runner.invoke(app, ["lake", "restore", str(lake.root), "--set", f"lake.url={place}"])
    assert "not empty" in str(again.exception)


def test_another_lake_is_not_overwritten(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    lake.append(golden[:4], "some")
    with Lake(tmp_path / "other", create=True) as other:
        other.append(golden[4:], "mine")
        with pytest.raises(LakeError, match="neither empty nor an earlier copy"):
            copy(lake, other)
        assert other.sql("from trajectories").num_rows == len(golden) - 4


def test_a_damaged_file_is_not_passed_on(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    lake.append(golden, "some")
    file = next((lake.root / "parts").iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with Lake(tmp_path / "other", create=True) as other:
        with pytest.raises(LakeError, match="see: flywheel lake check"):
            copy(lake, other)
        assert other.snapshot() == 0


def test_students_and_reports_are_part_of_a_backup(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    lake.append(golden, "some")
    (lake.root / "policies" / "p").mkdir(parents=True)
    (lake.root / "policies" / "p" / "model.safetensors").write_bytes(b"weights")
    done = CliRunner().invoke(app, ["lake", "backup", str(tmp_path / "safe"), "--data-dir", str(lake.root)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "safe" / "policies" / "p" / "model.safetensors").read_bytes() == b"weights"


def test_the_views_in_a_duckdb_file(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    lake.append(golden[:4], "some")
    file = tmp_path / "lake.duckdb"
    arguments = ["lake", "views", str(file), "--data-dir", str(lake.root)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    lake.append(golden[4:], "others")
    with duckdb.connect(str(file), read_only=True) as plain:
        assert plain.sql("select count(*) from trajectories").fetchall() == [(4,)]
        described = plain.sql("select view_name, comment from duckdb_views() where not internal").fetchall()
        assert {name for name, comment in described if comment} == VIEWS.keys()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with duckdb.connect(str(file), read_only=True) as plain:
        for view in VIEWS:
            assert plain.sql(f"from {view}").columns == lake.sql(f"from {view}").column_names
        assert plain.sql("select count(*) from steps").fetchall() == [
            (sum(trajectory.length for trajectory in golden),)
        ]
    (tmp_path / "mine.duckdb").write_bytes(b"something else")
    refused = CliRunner().invoke(app, ["lake", "views", str(tmp_path / "mine.duckdb"), "--data-dir", str(lake.root)])
    assert "not a file of views" in str(refused.exception)
    assert (tmp_path / "mine.duckdb").read_bytes() == b"something else"
