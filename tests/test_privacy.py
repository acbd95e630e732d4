"""Secrets never reach a file; a person's data leaves every file, and the lake remembers that it did."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.secret_samples import samples
from flywheel.arrow import ARROW_SCHEMAS, steps_to_arrow
from flywheel.cli.main import app
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.redaction import IDS, JSON, MESSAGE_COLUMNS, NAMES, redact, redacted, text_columns
from flywheel.flows.logs import WithoutSecrets
from flywheel.message_columns import CALL, MESSAGE
from flywheel.trajectory import Trajectory

SECRETS = {
    "e-mail address": "mara.lind+agents@post.example.org",
    "card number": "4111 1111 1111 1111",
    "openai key": "sk-proj-" + "a1B2" * 8,
    "aws access key": "AKIA" + "Q7Z3" * 4,
    "github token": "ghp_" + "a1B2" * 9,
    "slack token": "xoxb-123456789012-abcdefabcdef",
    "stripe key": "sk_live_" + "a1B2" * 6,
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


@pytest.mark.parametrize("gap", ["", " ", "-", ".", "/", "_", ",", ":", "  ", " - ", " / ", "\u2014", "\u00a0"])
def test_a_card_is_found_whatever_stands_between_its_groups(gap: str) -> None:
    assert (
        redact(f"card {gap.join(['4111', '1111', '1111', '1111'])} now", Counter()) == "card [REDACTED:card number] now"
    )


@pytest.mark.parametrize(
    "address",
    [
        "用户@例子.广告",
        "иван@пример.рф",
        "राम@उदाहरण.भारत",
        "కవి@ఉదాహరణ.భారత్",
        "ខ្មែរ@ឧទាហរណ៍.com",
        "မြန်မာ@example.com",
        "ไทย@ตัวอย่าง.ไทย",
        "தமிழ்@example.com",
    ],
)
def test_an_address_is_found_in_any_script(address: str) -> None:
    assert redact(f"mail {address} now", Counter()) == "mail [REDACTED:e-mail address] now"


def test_the_password_of_a_url_goes_and_the_url_stays() -> None:
    assert redact("see https://mara:hunter2hunter2@host/path", Counter()) == (
        "see https://mara:[REDACTED:basic auth]@host/path"
    )


@pytest.mark.parametrize(
    "text",
    [
        "take red onion",
        "4111 1111 1111 1112",
        "4111, 1111, 1111, 1111",
        "| 4111 | 1111 | 1111 | 1111 |",
        "4111\n1111\n1111\n1111",
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
        thought=f"key {SECRETS['openai key']}",
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
        ("steps", "openai key", 1),
        ("trajectories", "aws access key", 1),
    ]


def test_quarantined_records_are_read_too(lake: Lake, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": SECRETS["e-mail address"]}) + "\n")
    CliRunner().invoke(app, ["import", str(bad), "--format", "chat", "--data-dir", str(lake.root)])
    record = lake.sql("select record from quarantined").to_pylist()[0]["record"]
    assert json.loads(record) == {"messages": "[REDACTED:e-mail address]"}


def _filled(kind: pa.DataType, text: str) -> Any:
    """A value of a type that holds the text wherever it can."""
    if pa.types.is_list(kind):
        return [_filled(kind.value_type, text)]
    if pa.types.is_struct(kind):
        return {field.name: _filled(field.type, text) for field in kind}
    return text if pa.types.is_string(kind) else None


@pytest.mark.parametrize(("kind", "column"), text_columns())
def test_no_column_of_text_keeps_a_key(kind: str, column: str) -> None:
    """Columns come from the schema, so that a new one cannot be forgotten."""
    field = ARROW_SCHEMAS[kind].field(column)
    keys = [secret for kind, secret in SECRETS.items() if kind.endswith((" token", " key")) and " " not in secret]
    for secret in [*keys, "ABIA" + "Q7Z3" * 4, "0a1b2c3d" * 4 + "-us12"]:
        text = json.dumps({"deep": [{secret: f"key {secret}"}]}) if column in JSON else f"{column} {secret}"
        table = pa.table([pa.array([_filled(field.type, text)], field.type)], names=[column])
        (clean,) = redacted([table], Counter())
        assert secret not in str(clean.to_pylist())


def test_every_column_of_text_is_looked_at() -> None:
    told = {name for schema in ARROW_SCHEMAS.values() for name in schema.names}
    told |= {f"{column}.{field.name}" for column in MESSAGE_COLUMNS for field in MESSAGE}
    told |= {f"tool_calls.{field.name}" for field in CALL}
    assert told >= NAMES | IDS | JSON


def test_digests_that_look_like_cards_stay(golden: list[Trajectory]) -> None:
    """A state key is sixteen digits now and then, and equal keys mean equal states."""
    steps = tuple(replace(step, state_key="4111111111111111") for step in golden[0].steps)
    table = next(steps_to_arrow([replace(golden[0], steps=steps)]))
    assert next(redacted([table], Counter())) is table


def test_phone_numbers_and_ibans_are_replaced_where_they_are_asked_for(tmp_path: Path) -> None:
    text = "call +49 171 2345678, pay DE89 3704 0044 0532 0130 00"
    assert redact(text, Counter()) == text
    assert redact(text, Counter(), ("phone number", "iban")) == "call [REDACTED:phone number], pay [REDACTED:iban]"
    with Lake(tmp_path / "lake", create=True, redact=["iban"]) as lake:
        record = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]}
        (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
        import_files(lake, [tmp_path / "log.jsonl"], "chat")
        (row,) = lake.sql("select observation from steps").to_pylist()
    assert row["observation"] == "call +49 171 2345678, pay [REDACTED:iban]"


def test_keys_reach_no_log() -> None:
    try:
        raise ValueError(f"refused: {SECRETS['openai key']}")
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "", 0, "key %s", (SECRETS["github token"],), sys.exc_info())
    told = WithoutSecrets(logging.Formatter()).format(record)
    assert "key [REDACTED:github token]" in told
    assert "refused: [REDACTED:openai key]" in told
    assert SECRETS["github token"] in record.getMessage()  # other handlers see what they saw


def test_precision_and_recall_on_the_labelled_strings() -> None:
    false = [
        sample.text for sample in samples() if sample.secret is None and redact(sample.text, Counter()) != sample.text
    ]
    core = [sample for sample in samples() if sample.secret and not sample.kind.startswith("optional:")]
    missed = [one.text for one in core if one.secret and one.secret in redact(one.text, Counter())]
    assert len(core) == 148
    assert false == []
    assert missed == []


def test_clean_columns_are_not_copied(golden: list[Trajectory]) -> None:
    table = next(steps_to_arrow(golden))
    assert next(redacted([table], Counter())) is table


def test_a_persons_data_leaves_every_file_and_snapshot(lake: Lake, golden: list[Trajectory]) -> None:
    mine = [replace(trajectory, subject="mara") for trajectory in golden[:3]]
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
    assert all(trajectory.trajectory_id not in text for trajectory in mine)
    rows = lake.sql("select trajectory_id, reason from revocations order by all").to_pylist()
    assert rows == [
        {"trajectory_id": trajectory_id, "reason": "purged: asked for it"}
        for trajectory_id in sorted(one.trajectory_id for one in mine)
    ]
    assert lake.append(mine, "late retry") == 0
    again = runner.invoke(app, call)
    assert again.exit_code != 0
    assert "nothing to purge" in str(again.exception)


def test_secrets_in_messages_and_tool_calls_are_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    secret = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
    function = {"name": "login", "arguments": json.dumps({"token": secret})}
    call = {"id": "call_9pw1qnYScqvGrCH58HWCvFH6", "function": function}
    tool = {"type": "function", "function": {"name": "login", "description": f"as {secret}"}}
    parts = [{"type": "text", "text": "listen"}, {"type": "input_audio", "input_audio": {"note": secret}}]
    messages = [
        {"role": "system", "content": f"the token is {secret}"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "", "reasoning_content": f"with {secret}", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": f"welcome {secret}"},
        {"role": "assistant", "content": "done"},
    ]
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": messages, "tools": [tool]}) + "\n")
    with Lake(tmp_path / "lake", create=True) as lake:
        import_files(lake, [tmp_path / "log.jsonl"], "chat")
        stored = lake.sql("from messages").to_pylist()
        (used,) = lake.sql("select * from tool_calls").to_pylist()
        (run,) = lake.trajectories(lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist())
    assert secret not in str((stored, used, run))
    assert json.loads(used["arguments"]) == {"token": "[REDACTED:github token]"}
    assert (used["id"], used["result"]) == (call["id"], "welcome [REDACTED:github token]")
    assert run.final_inputs == ()
