"""Secrets never reach a file; a person's data leaves every file, and the lake remembers that it did."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.arrow import steps_to_arrow
from flywheel.cli import app
from flywheel.datasets.drafts import Draft
from flywheel.datasets.lake import Lake
from flywheel.datasets.privacy import redact, redacted
from flywheel.trajectory import Trajectory

SECRETS = {
    "e-mail address": "mara.lind+agents@post.example.org",
    "card number": "4111 1111 1111 1111",
    "model server key": "sk-proj-" + "a1B2" * 8,
    "aws access key": "AKIA" + "Q7Z3" * 4,
    "github token": "ghp_" + "a1B2" * 9,
    "slack token": "xoxb-123456789012-abcdefabcdef",
    "stripe access key": "sk_live_" + "a1B2" * 6,
    "json web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl",
    "bearer token": "Authorization: Bearer " + "x9Y8" * 8,
    "private key": "-----BEGIN PRIVATE KEY-----\nMIIEvAIBADANBg\n-----END PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", sorted(SECRETS))
def test_each_kind_of_secret_is_replaced_and_counted(kind: str) -> None:
    found: Counter[str] = Counter()
    text = redact(f"before {SECRETS[kind]} after", found)
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert f"[REDACTED:{kind}]" in text
    assert SECRETS[kind].split()[-1] not in text
    assert found == {kind: 1}


def test_the_password_of_a_url_goes_and_the_url_stays() -> None:
    assert redact("see https://mara:hunter2hunter2@host/path", Counter()) == (
        "see https://mara:[REDACTED:basic auth credentials]@host/path"
    )


@pytest.mark.parametrize(
    "text",
    [
        "take red onion",
        "4111 1111 1111 1112",
        "3f2a91c04b9911deadbeef0011223344",
        "2026-11-24 03:04:05",
        "a @ b",
        "0" * 16,
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    found: Counter[str] = Counter()
    assert redact(text, found) == text
    assert not found


@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(sorted(SECRETS)))
def test_redaction_is_final_whatever_stands_around(before: str, after: str, kind: str) -> None:
    once = redact(f"{before} {SECRETS[kind]} {after}", Counter())
    again: Counter[str] = Counter()
    assert redact(once, again) == once
    assert not again


def spoken(one: Trajectory) -> Trajectory:
    """The episode with a secret in each of its texts."""
    steps = list(one.steps)
    steps[1] = replace(
        steps[1],
        observation=f"Mail from {SECRETS['e-mail address']}",
        thought=f"key {SECRETS['model server key']}",
        valid_actions=("wait", f"pay with {SECRETS['card number']}"),
    )
    return replace(one, steps=tuple(steps), instruction=f"Use {SECRETS['aws access key']}.", subject="mara")


def bytes_of(lake: Lake) -> str:
    """All values of all Parquet files, as text."""
    return "".join(str(pq.read_table(path).to_pylist()) for path in sorted(lake.root.rglob("*.parquet")))


def test_no_file_of_the_lake_holds_a_secret(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append([spoken(golden[0]), golden[1]], "episodes")
    text = bytes_of(lake)
    for secret in SECRETS.values():
        assert secret not in text
    kept = lake.trajectories([golden[0].trajectory_id])[0]
    assert kept.steps[1].valid_actions == ("wait", "pay with [REDACTED:card number]")
    assert kept.instruction == "Use [REDACTED:aws access key]."
    assert lake.trajectories([golden[1].trajectory_id])[0] == golden[1]
    counts = lake.sql("select kind, secret, occurrences from redactions order by all").to_pylist()
    assert [(row["kind"], row["secret"], row["occurrences"]) for row in counts] == [
        ("steps", "card number", 1),
        ("steps", "e-mail address", 1),
        ("steps", "model server key", 1),
        ("trajectories", "aws access key", 1),
    ]


def test_drafts_and_quarantined_records_are_read_too(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    one = spoken(golden[0])
    with Draft(lake, one) as draft:
        draft.add(one.steps)
        draft.commit(one, "draft")
    assert SECRETS["e-mail address"] not in bytes_of(lake)
    assert lake.sql("select sum(occurrences)::int as n from redactions").to_pylist() == [{"n": 4}]
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": SECRETS["e-mail address"]}) + "\n")
    CliRunner().invoke(app, ["import", str(bad), "--format", "chat", "--data-dir", str(lake.root)])
    record = lake.sql("select record from quarantined").to_pylist()[0]["record"]
    assert json.loads(record) == {"messages": "[REDACTED:e-mail address]"}


def test_clean_columns_are_not_copied(golden: list[Trajectory]) -> None:
    table = next(steps_to_arrow(golden))
    assert next(redacted([table], Counter())) is table


def test_a_persons_data_leaves_every_file_and_snapshot(lake: Lake, golden: list[Trajectory]) -> None:
    mine = [replace(one, subject="mara") for one in golden[:3]]
    lake.append(mine[:2], "first")
    first = lake.snapshot()
    lake.append([mine[2], *golden[3:]], "second")
    call = ["lake", "purge", "--subject", "mara", "--reason", "asked for it", "--data-dir", str(lake.root), "--json"]
    runner = CliRunner()
    assert json.loads(runner.invoke(app, [*call, "--dry-run"]).stdout) == {"purged": 3}
    assert lake.sql("select count(*) as n from trajectories").to_pylist() == [{"n": len(golden)}]
    assert json.loads(runner.invoke(app, call).stdout) == {"purged": 3}
    assert lake.sql("select count(*) as n from trajectories", at=first).to_pylist() == [{"n": 0}]
    text = bytes_of(lake)
    assert "mara" not in text
    assert all(one.trajectory_id not in text for one in mine)
    rows = lake.sql("select trajectory_id, reason from revocations order by all").to_pylist()
    assert rows == [
        {"trajectory_id": one, "reason": "purged: asked for it"} for one in sorted(one.trajectory_id for one in mine)
    ]
    assert lake.append(mine, "late retry") == 0
    again = runner.invoke(app, call)
    assert again.exit_code != 0
    assert "nothing to purge" in str(again.exception)
