"""A first day: `flywheel init` writes a config that doctor passes, and commands find the only lake that is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import FlywheelError
from tests.conftest import ROOT


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize(
    ("door", "answer", "environment"),
    [
        ("environment", "cookingworld", "cookingworld"),
        ("environment", "gymnasium", "gymnasium"),
        ("agent", "http://127.0.0.1:9/v1", "gateway/mine"),
        ("logs", "chat", "imported/chat"),
    ],
)
def test_the_first_config_passes_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str, answer: str, environment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = invoke("init", "--door", door, "--name", "mine", "--answer", answer)
    assert "mine.toml is written" in said and "flywheel doctor mine.toml" in said
    assert load(tmp_path / "mine.toml").environment.name == environment
    invoke("doctor", "mine.toml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--door"),
        (["--door", "logs"], "--answer"),
        (["--door", "logs", "--answer", "chat"], "--name"),
        (["--door", "logs", "--answer", "chat", "--name", "../x"], "cannot name a flywheel"),
        (["--door", "logs", "--answer", 'a"b', "--name", "x"], "cannot stand in a config"),
        (["--door", "agent", "--answer", "ftp://x", "--name", "x"], "must begin with http"),
    ],
)
def test_what_is_not_told_or_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["init", *arguments])
    assert isinstance(refused.exception, FlywheelError) and words in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_config_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("mine")
    refused = CliRunner().invoke(app, ["init", "--door", "logs", "--answer", "chat", "--name", "mine"])
    assert "is there already" in str(refused.exception) and (tmp_path / "mine.toml").read_text() == "mine"


def test_what_is_only_recorded_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("init", "--door", "agent", "--name", "mine", "--answer", "http://127.0.0.1:9/v1")
    refused = subprocess.run([sys.executable, "-m", "flywheel", "run", "mine.toml"], capture_output=True, text=True)
    assert refused.returncode == 2 and "not played" in refused.stderr and not list(tmp_path.rglob("catalog*"))


def test_the_only_lake_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Lake("data/mine", create=True).close()
    assert "snapshot: 0" in invoke("status")
    Lake("data/other", create=True).close()
    assert "no lake at data/quickstart" in str(CliRunner().invoke(app, ["status"]).exception)


def test_shells_complete_commands() -> None:
    asked = {"_FLYWHEEL_COMPLETE": "complete_bash", "COMP_WORDS": "flywheel annot", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("flywheel")
    shown = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True)
    assert shown.stdout.split() == ["annotate"]


@pytest.mark.slow
def test_the_first_door_opens_word_for_word(tmp_path: Path) -> None:
    """The commands of docs/index.md, one after the other, and the page at the end of them."""
    page = (ROOT / "docs" / "index.md").read_text()
    commands = re.findall(r"```sh\n(.+?)```", page, re.DOTALL)[0].splitlines()
    assert [command.split()[1] for command in commands] == ["init", "doctor", "run", "ui"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {"PATH": path}
    for command in commands[:-1]:
        subprocess.run(shlex.split(command), cwd=tmp_path, env=env, check=True)
    pages = subprocess.Popen(
        [*commands[-1].split(), "--port", "0", "--no-open"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    with pages:
        assert pages.stdout
        address = pages.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as shown:
            assert "exact McNemar" in shown.read().decode()
        pages.terminate()
