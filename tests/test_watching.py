"""Watching collection: OpenTelemetry spans, the table of running episodes, and a person in the agent's place."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console

from flywheel.agents.scripted import Expert
from flywheel.datasets.formats import otel
from flywheel.datasets.formats.records import ReadContext
from flywheel.datasets.lake.lake import Lake
from flywheel.flows.monitor import Board
from flywheel.integrations.otel import CONTENT, ENDPOINTS, tracing
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Episode, Job, Origin
from flywheel.trajectory import Split, StopReason
from tests.corridor import LENGTH, CorridorWorld, task_of
from tests.servers import listening

ROOT = Path(__file__).parents[1]
FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
ORIGIN = Origin(1, "collect", "test")


@contextmanager
def collector() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OTLP collector: its endpoint, and the exports that it has received."""
    exports: list[dict[str, Any]] = []

    def hear(body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        exports.append(MessageToDict(request))

    with listening(hear) as url:
        yield url, exports


def spans_of(exports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [s for e in exports for r in e["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]]
    for span in found:
        span["known"] = {
            attribute["key"]: next(iter(attribute["value"].values()), None) for attribute in span["attributes"]
        }
    return found


@pytest.mark.parametrize("content", [False, True])
def test_spans_tell_episodes_decisions_and_steps(content: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = CorridorWorld()
    with collector() as (url, exports):
        monkeypatch.setenv(ENDPOINTS[0], url)
        monkeypatch.setenv(CONTENT, str(content).lower())
        with tracing() as callbacks:
            jobs = [Job(task_of(seed)) for seed in range(3)]
            rollout = Rollout(
                Expert(world), jobs, in_process(world, 2), budget=Budget(20), origin=ORIGIN, callbacks=callbacks
            )
            played = {trajectory.trajectory_id for trajectory in rollout}
    spans = spans_of(exports)
    roots = [span for span in spans if span["name"] == "invoke_agent expert"]
    assert {span["known"]["gen_ai.conversation.id"] for span in roots} == played
    assert {span["known"]["flywheel.stop_reason"] for span in roots} == {StopReason.SUCCESS}
    by_operation = [span["known"]["gen_ai.operation.name"] for span in spans]
    assert by_operation.count("chat") == by_operation.count("execute_tool") == 3 * LENGTH
    children = [span for span in spans if span not in roots]
    assert {span["parentSpanId"] for span in children} == {span["spanId"] for span in roots}
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)
    assert any("gen_ai.output.messages" in span["known"] for span in spans) == content
    if content:
        traces = [run for export in exports for run in otel.read(export, Split.TRAIN, ReadContext())]
        assert sorted(trace.length for trace in traces) == [LENGTH] * 3
        assert {step.action for trace in traces for step in trace.steps} == {"right"}


def test_without_an_endpoint_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    with tracing() as callbacks:
        assert callbacks == []


def test_the_table_shows_what_runs_and_how_the_rest_ended() -> None:
    world, board = CorridorWorld(), Board()
    jobs = [Job(task_of(seed)) for seed in range(5)]
    rollout = Rollout(Expert(world), jobs, in_process(world, 2), budget=Budget(3), origin=ORIGIN, callbacks=[board])
    assert len(list(rollout)) == 5
    board.begun(7, Episode(Job(task_of(9)), Expert(world), ORIGIN))
    seen = _drawn(board)
    assert "5 step_limit" in seen
    assert task_of(9).task_id in seen and task_of(1).task_id not in seen


def _drawn(board: Board) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(board)
    return console.export_text()


def _on_a_terminal(command: list[str], typed: str = "") -> str:
    """What a program writes to a terminal in which somebody types."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=subprocess.PIPE, stderr=slave, cwd=ROOT, text=True)
    os.close(slave)
    os.write(master, typed.encode())
    shown = b""
    while True:
        try:
            shown += (part := os.read(master, 65536))
        except OSError:
            break
        if not part:
            break
    told, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0, shown.decode()
    return shown.decode() + told


def test_a_person_plays_at_the_terminal(tmp_path: Path) -> None:
    sets = [
        "environment.name=tests.corridor",
        "environment.parameters={}",
        "environment.parallel=1",
        "collect.episodes=2",
    ]
    command = [sys.executable, "-m", "flywheel", "collect", str(ROOT / "configs" / "smoke.toml"), "--json"]
    settings = [f"data_dir={tmp_path / 'lake'}", "collect.teachers={human=1}", *sets]
    shown = _on_a_terminal(
        [*command, *(part for setting in settings for part in ("--set", setting))], typed="1\nright\n1\n1\n1\n1\n0\n\n"
    )
    assert "You are at 3 of 6." in shown and "1 right" in shown
    rows = Lake(tmp_path / "lake").sql("select policy, stop_reason, length from trajectories order by seed").to_pylist()
    assert rows == [
        {"policy": "human", "stop_reason": "success", "length": LENGTH},
        {"policy": "human", "stop_reason": "gave_up", "length": 1},
    ]


def test_the_live_table_on_a_terminal(tmp_path: Path) -> None:
    command = [FLYWHEEL, "collect", str(ROOT / "configs" / "smoke.toml"), "--live", "--json"]
    shown = _on_a_terminal([*command, "--set", f"data_dir={tmp_path / 'lake'}"])
    assert "subgoal" in shown and "noisy_expert" in shown
    assert json.loads(shown[shown.rindex("{") : shown.rindex("}") + 1]) == {"expert": 12, "noisy_expert": 12}
