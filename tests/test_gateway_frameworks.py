"""Agents of real frameworks, recorded without a line changed but the base URL and the key; and the helpdesk example."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flywheel.datasets.lake.lake import Lake
from tests.frameworks import ask_frameworks
from tests.gateways import recording
from tests.scripted_model import scripted_model
from tests.servers import free_port

ROOT = Path(__file__).parents[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_two_frameworks_are_recorded_as_they_are(tmp_path: Path) -> None:
    with scripted_model() as url, recording(tmp_path / "lake", url) as recorder:
        said = ask_frameworks(tmp_path, recorder.url, "You look.", "what is there?", "a lamp")
        trajectories = recorder.trajectories()
    assert said == ["I hear a lamp after 4 messages"] * 2
    assert [trajectory.task_name for trajectory in trajectories] == ["openai-agents", "pydantic-ai"]
    for trajectory in trajectories:
        assert (trajectory.length, trajectory.system) == (2, "You look.")
        assert trajectory.steps[0].action == 'look {"at": "what is there?"}'


@pytest.mark.slow
def test_the_helpdesk_runs_and_is_verified(tmp_path: Path) -> None:
    """The example's own script, on a few tickets."""
    script = ROOT / "examples" / "helpdesk" / "play.py"
    small = ("epochs={ planner = 1, executor = 1, flat = 1 }", "later_epochs={ planner = 1, executor = 1, flat = 1 }")
    sets = [f"train.{each}" for each in small] + ["evaluate.dev_tasks=4", "evaluate.test_tasks=4", "gate.alpha=0.9"]
    command = [sys.executable, script, "--sessions", "12", "--later", "3", "--rounds", "2", "--mistakes", "0.4"]
    command += ["--data-dir", tmp_path / "lake", *(part for each in sets for part in ("--set", each))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "12 sessions" in done.stdout and "round 2" in done.stdout
    with Lake.open(tmp_path / "lake") as lake:
        rows = lake.sql(
            """select success, route, length, cost, tools is not null as tools from trajectories
               where purpose = 'recorded'"""
        ).to_pylist()
        calls = lake.sql(
            """select count(*) as n from tool_calls join trajectories using (trajectory_id)
               where purpose = 'recorded' and result is null"""
        ).to_pylist()
        played = lake.sql(
            "select distinct policy from trajectories where purpose = 'evaluate' and iteration = 2 order by policy"
        )["policy"].to_pylist()
    assert len(rows) == 15 and calls == [{"n": 0}]
    assert {row["success"] for row in rows} == {True, False}
    assert all(5 <= row["length"] <= 20 and row["cost"] is not None and row["tools"] and row["route"] for row in rows)
    assert played == ["flat", "hierarchical"], "the teacher is not played twice on the same tickets"


@pytest.mark.slow
def test_the_page_on_production_agents_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/howto/production-agent.md, word for word: its files, its commands, its Python."""
    page = (ROOT / "docs" / "howto" / "production-agent.md").read_text()
    first, more, learn = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    ask, report, agent = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    commands = re.findall(r"^flywheel (.*)$", page, re.MULTILINE)
    bins, port, model_port = Path(sys.executable).parent, free_port(), free_port()
    ours = {"127.0.0.1:8411": f"127.0.0.1:{model_port}", "127.0.0.1:8400": f"127.0.0.1:{port}", "8400": str(port)}

    def here(text: str) -> str:
        for said, meant in ours.items():
            text = text.replace(said, meant)
        return text

    def flywheel(line: str, *, check: bool = True) -> str:
        command = [bins / "flywheel", *shlex.split(line, comments=True)]
        return subprocess.run(command, capture_output=True, text=True, check=check, cwd=tmp_path).stdout

    (tmp_path / "agent.toml").write_text(here(first))
    (tmp_path / "outcomes.csv").write_text("session,success\nticket-4711,yes\n")
    (tmp_path / "my_agent.py").write_text(agent)
    splits = ["train"] * 6 + ["dev"] * 3 + ["test"] * 3
    rows = [{"id": f"a{n}", "instruction": f"say hello to {n}", "split": split} for n, split in enumerate(splits)]
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (gateway_line,) = (line for line in commands if line.startswith("gateway"))
    model = subprocess.Popen([sys.executable, "-m", "tests.scripted_model", str(model_port)], cwd=ROOT)
    gateway = subprocess.Popen([bins / "flywheel", *gateway_line.split()], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        monkeypatch.setenv("FLYWHEEL_GATEWAY_URL", f"http://127.0.0.1:{port}/v1")
        exec(compile(here(ask) + report, "page", "exec"), {})
        (look,) = (line for line in commands if "tokens, cost" in line)
        while "ticket-4711" not in flywheel(look, check=False):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        printed = {line: flywheel(line) for line in commands if line.startswith(("report", "sql", "show", "curate"))}
    finally:
        gateway.terminate()
        gateway.wait()
        (tmp_path / "agent.toml").write_text(here(first + more + learn))
    try:
        run, *learning = commands[next(n for n, line in enumerate(commands) if line.startswith("agent ")) :]
        ended = flywheel(run)
        told, policy = {}, "POLICY"
        for line in learning:
            told[line.split()[0]] = flywheel(line.replace("POLICY", policy))
            if line.startswith("distill"):
                (policy,) = set(re.findall(r"flat-[0-9a-f]+", told["distill"]))
    finally:
        model.kill()
        model.wait()
    assert "ticket-4711" in printed[look]
    assert "[REDACTED:e-mail address 1]" in printed["show ticket-4711 --data-dir data/agent"]
    assert "supervised" in printed["curate agent.toml"] or "held_out" in printed["curate agent.toml"]
    assert "succeeded: 6" in ended
    assert "same tools" in told["evaluate"] and "played against the record" in told["evaluate"]
    assert "no worse by 10%" in told["promote"]
    assert policy in told["route"]
