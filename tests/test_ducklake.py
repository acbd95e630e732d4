"""What older DuckDBs read: the DuckLake catalog through DuckLake itself, and the file of views."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.arrow import verdicts_to_arrow
from flywheel.cli.main import app
from flywheel.datasets.lake.lake import Lake
from flywheel.trajectory import Item, Trajectory, Verdict

PACKAGES = ("duckdb==1.5.5", "duckdb-extension-ducklake==1.5.5", "pytz==2025.2")
"""The newest DuckDB for which the registries serve the extension."""
READER = textwrap.dedent("""
    import json, pathlib, sys
    import duckdb
    (extension,) = pathlib.Path(sys.argv[1]).glob("duckdb_extension_ducklake/**/*.duckdb_extension")
    connection = duckdb.connect(config={"allow_unsigned_extensions": True})
    connection.execute(f"load '{extension}'")
    connection.execute(f"attach 'ducklake:{sys.argv[2]}' as lake (read_only)")
    connection.execute("use lake")
    print(json.dumps([connection.sql(query).fetchall() for query in sys.argv[3:]]))
""")
PLAIN_READER = """
import json, sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print(json.dumps([connection.sql(query).fetchall() for query in sys.argv[2:]]))
"""
QUERIES = (
    "select trajectory_id, length, success from trajectories order by all",
    "select trajectory_id, count(*), sum(len(valid_actions)) from steps group by all order by all",
    "select trajectory_id, items[1].points from verdicts order by all",
    "select count(*) from credits",
)


@pytest.mark.slow
def test_ducklake_reads_our_files_where_they_lie(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    lake.append(golden[:3], "some")
    said = [
        Verdict(
            trajectory.trajectory_id, "v", "1", "{}", 100.0, 1.0, 50.0, 1.0, True, 1.0, (Item("all", 2.5, 1.0, ""),), ""
        )
        for trajectory in golden[:3]
    ]
    lake.append_facts("verdicts", verdicts_to_arrow(said), "verdicts", key=["verifier"])
    lake.append(golden[3:], "after the snapshot")
    catalog = tmp_path / "lake.ducklake"
    arguments = ["lake", "ducklake", str(catalog), "--at", "2", "--data-dir", str(lake.root), "--json"]
    assert json.loads(CliRunner().invoke(app, arguments).stdout) == {"files": 3}
    assert "is there already" in str(CliRunner().invoke(app, arguments).exception)
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), *PACKAGES]
    subprocess.run(install, check=True)
    command = [sys.executable, "-c", READER, str(packages), str(catalog), *QUERIES]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(packages)})
    ours = [[list(row.values()) for row in lake.sql(query, at=2).to_pylist()] for query in QUERIES]
    assert json.loads(done.stdout) == ours
    assert len(ours[0]) == 3

    views = tmp_path / "views.duckdb"
    arguments = ["lake", "views", str(views), "--at", "2", "--data-dir", str(lake.root)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    command = [sys.executable, "-c", PLAIN_READER, str(views), *QUERIES]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(packages)})
    assert json.loads(done.stdout) == ours
