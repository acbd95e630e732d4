"""The lake from the command line: datasets, lineage, upkeep, results in every format, the shell."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.data.corpus import load_corpus
from flywheel.distill.stage import distill
from flywheel.errors import FlywheelError
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory

QUERY = "select policy, count(*) as n from trajectories group by all"


@pytest.fixture
def filled(lake: Lake, golden: list[Trajectory]) -> Lake:
    lake.append(golden, "episodes")
    return lake


def flywheel(lake: Lake, *arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, [*arguments, "--data-dir", str(lake.root)], input=typed)


def said(lake: Lake, *arguments: str) -> object:
    told = flywheel(lake, *arguments, "--json")
    assert told.exit_code == 0, told.exception
    return json.loads(told.stdout)


def refused(lake: Lake, *arguments: str) -> str:
    """What `flywheel` would print in one line before it exits with 2."""
    problem = flywheel(lake, *arguments).exception
    assert isinstance(problem, FlywheelError)
    assert "\n" not in str(problem)
    return str(problem)


def test_results_in_every_format(filled: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    wanted = [{"policy": "expert", "n": len(golden)}]
    given = {
        format: flywheel(filled, "sql", QUERY, "--format", format).stdout_bytes
        for format in ("json", "jsonl", "csv", "parquet", "arrow")
    }
    assert json.loads(given["json"]) == wanted
    assert [json.loads(line) for line in given["jsonl"].splitlines()] == wanted
    assert given["csv"].decode() == f"policy,n\nexpert,{len(golden)}\n"
    assert pq.read_table(BytesIO(given["parquet"])).to_pylist() == wanted
    assert pa.ipc.open_stream(given["arrow"]).read_all().to_pylist() == wanted
    out = tmp_path / "out.parquet"
    assert flywheel(filled, "sql", QUERY, "--format", "parquet", "--output", str(out)).exit_code == 0
    assert pq.read_table(out).to_pylist() == wanted
    assert "name a new file" in refused(filled, "sql", QUERY, "--output", str(out))


def test_a_dataset_from_its_creation_to_its_files(filled: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    create = ("dataset", "create", "wins", "--where", "success")
    assert said(filled, *create, "--dry-run") == {"trajectories": len(golden)}
    assert said(filled, "dataset", "list") == []
    made = said(filled, *create)
    assert isinstance(made, dict)
    assert made["dataset"] == "wins@v1"
    assert "Known biases" in flywheel(filled, "dataset", "card", "wins").stdout
    assert said(filled, "sql", "select count(*) as n from trajectories", "--at", "wins@v1") == [{"n": len(golden)}]
    same = said(filled, "dataset", "diff", "wins@v1", "wins")
    assert isinstance(same, dict)
    assert {name: len(found) for name, found in same.items()} == {"removed": 0, "added": 0, "kept": len(golden)}
    assert said(filled, "dataset", "write", "wins@v1", str(tmp_path / "files"))
    assert (tmp_path / "files" / "README.md").is_file()
    assert "no dataset 'losses'" in refused(filled, "dataset", "card", "losses")
    assert "no snapshot 99" in refused(filled, "sql", QUERY, "--at", "99")


def test_lineage_both_ways_and_revocation_reaches_the_student(
    smoke: Config, filled: Lake, golden: list[Trajectory], noisy: list[Trajectory]
) -> None:
    filled.append(noisy, "noisy")
    curate(smoke, filled)
    assert said(filled, "dataset", "create", "mine") is not None
    card = distill(smoke, filled, "flat", 1)
    up = said(filled, "lineage", card.policy_id[:12])
    assert isinstance(up, dict)
    assert sum(row["trajectories"] for row in up["trajectories"]) == card.trajectories
    assert {row["verifier"] for row in up["verifiers"]} == {verifier.name for verifier in smoke.curate.verifiers}
    one = golden[0].trajectory_id
    down = said(filled, "lineage", one)
    assert isinstance(down, dict)
    assert down["students"] == [{"policy_id": card.policy_id, "trained_on_it": True}]
    assert down["datasets"] == ["mine@v1"]
    marked = said(filled, "lake", "revoke", one, "--reason", "licence")
    assert marked == {"revoked": 1, "datasets": ["mine@v1"], "students": [card.policy_id]}
    corpus = load_corpus(smoke, filled, 1)
    assert one not in corpus.routes
    assert len(corpus.routes) == card.trajectories - 1
    assert "no student or trajectory begins" in refused(filled, "lineage", "zzz")


def test_upkeep_commands(filled: Lake, golden: list[Trajectory]) -> None:
    assert said(filled, "lake", "check") == "the lake is what its catalog says"
    assert said(filled, "lake", "compact") == {"merged segments": 0}
    assert said(filled, "lake", "gc") == {"deleted files": 0}
    one = golden[3].trajectory_id
    assert said(filled, "lake", "purge", one, "--reason", "personal data", "--dry-run") == {"purged": 1}
    assert said(filled, "lake", "purge", one, "--reason", "personal data") == {"purged": 1}
    victim = next((filled.root / "parts").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    told = flywheel(filled, "lake", "check")
    assert told.exit_code == 2
    assert victim.name in told.stdout
    assert said(filled, "lake", "repair", "--dry-run") == [str(victim)]
    assert victim.exists()
    assert said(filled, "lake", "repair")
    assert said(filled, "lake", "check") == "the lake is what its catalog says"


def test_the_shell_reads_statements_and_dot_commands(filled: Lake, golden: list[Trajectory]) -> None:
    told = flywheel(
        filled,
        "sql",
        typed="select count(*) as n\nfrom trajectories;\nnonsense;\n.at 0\nselect count(*) as then from trajectories;\n"
        ".at 77\n.help routes\n.tables\n.help\n.quit\n",
    )
    text = told.stdout
    assert told.exit_code == 0
    for wanted in (
        f"│ {len(golden)} ",
        "┃ then ",
        "│ 0 ",
        "no snapshot 77",
        "every verifier passed",
        "a turn of the wheel",
        ".quit",
    ):
        assert wanted in text, text
