"""An agent's own logs, as docs/howto/own-agent-logs.md tells it: imported, judged, exported, and read by TRL."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from tests.servers import chat_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "own-agent-logs.md").read_text()
TOOLS = [
    {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {"path": {}}}}},
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"n": {}}}}},
]
TRL_READER = """
import json, sys
from datasets import load_dataset
from transformers import AutoTokenizer
from trl.data_utils import apply_chat_template, is_conversational
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
tokenizer.chat_template = "{{ {'messages': messages, 'tools': tools} | tojson }}"
for row in load_dataset(sys.argv[1], cache_dir=sys.argv[3])["train"]:
    assert is_conversational(row)
    example = {"messages": row["messages"], "tools": json.loads(row["tools"])}
    print(apply_chat_template(example, tokenizer, tools=example["tools"])["text"])
"""


def log(number: int) -> dict[str, Any]:
    """A run that counts files; every third one does not look."""
    names = [f"{letter}{number}.txt" for letter in "abc"[: number % 3 + 1]]
    call = {"id": f"c{number}", "type": "function", "function": {"name": "ls", "arguments": '{"path": "/srv"}'}}
    asked = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": f"Count the files of /srv/{number}"},
    ]
    looked = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "\n".join(names), "tool_call_id": f"c{number}"},
    ]
    answer = [{"role": "assistant", "content": str(len(names))}]
    return {"messages": [*asked, *(looked if number % 3 else []), *answer], "tools": TOOLS, "model": "agent"}


def mark(request: dict[str, Any], key: str) -> tuple[int, str]:
    """A scripted judge: both items pass where a tool was called."""
    word = "pass" if "action: ls" in request["messages"][1]["content"] else "fail"
    marks = [{"item": number, "mark": word, "evidence": "the record"} for number in (0, 1)]
    return 200, json.dumps({"marks": marks, "integrity": 1.0, "reasoning": "rule"})


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The rows of 60 logs, made by the page's own commands and files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "all.jsonl").write_text("".join(json.dumps(log(number)) + "\n" for number in range(60)))
    rubric, config = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "rubric.toml").write_text(rubric)
    with chat_server(mark) as url:
        (tmp_path / "agent.toml").write_text(config.replace("http://127.0.0.1:8000/v1", url))
        for line in re.findall(r"^flywheel (.*)$", PAGE, re.MULTILINE):
            if line.startswith(("import", "curate", "export")):
                done = CliRunner().invoke(app, line.split())
                assert done.exit_code == 0, (line, done.output, done.exception)
    yield tmp_path / "out" / "sft"


def conversation_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": row["messages"], "tools": row["tools"]}


def good_logs() -> list[dict[str, Any]]:
    """What the judge passes."""
    return [conversation_of(log(number)) for number in range(60) if number % 3]


def in_order(conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(conversations, key=lambda conversation: str(conversation["messages"]))


def test_logs_are_imported_judged_and_exported_as_they_were(rows: Path) -> None:
    exported = [json.loads(line) for line in (rows / "flat.jsonl").read_text().splitlines()]
    conversations = [{**conversation_of(row), "tools": json.loads(row["tools"])} for row in exported]
    assert in_order(conversations) == in_order(good_logs())


@pytest.mark.slow
def test_trl_reads_the_rows_as_they_were(rows: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from flywheel.policies.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["some words"], [], 400)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), "trl"]
    subprocess.run(install, check=True)
    command = [sys.executable, "-c", TRL_READER, str(rows), str(tmp_path / "tokenizer"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(packages)})
    assert done.returncode == 0, done.stderr[-2000:]
    read = [json.loads(line) for line in done.stdout.splitlines()]
    for row in read:
        row["messages"] = [_without_nulls(message) for message in row["messages"]]
    assert in_order(read) == in_order(good_logs())


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the columns that it has only because others have them."""
    return {name: value for name, value in message.items() if value is not None}
