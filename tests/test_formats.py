"""Formats: what goes out comes back, what others wrote comes in once, what is broken is told with its place."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import atif
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.arrow import routes_to_arrow, segments_to_arrow
from flywheel.cli.formats import From, To
from flywheel.cli.main import app
from flywheel.datasets.formats import atif as atif_format
from flywheel.datasets.formats.catalog import DOCUMENTS, LINES, READERS, SUFFIXES, TUNING, read
from flywheel.datasets.formats.exporting import export, select_ids
from flywheel.datasets.formats.importing import Imported, import_files
from flywheel.datasets.formats.records import ReadContext
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import LakeError, RecordError
from flywheel.filters.segments import segment
from flywheel.messages import Image
from flywheel.trajectory import Route, RouteTo, Split, StopReason, Trajectory, TrajectoryOrigin
from tests.strategies import episodes

PIXEL = Image("image/png", b"\x89PNG\r\n\x1a\n and no more")
CHAT = {
    "model": "gpt",
    "messages": [
        {"role": "system", "content": "You are a cook."},
        {"role": "user", "content": "Make soup."},
        {
            "role": "assistant",
            "content": "I look around.",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "room"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "A pot."},
        {"role": "assistant", "content": "Done."},
    ],
    "success": True,
}
SWE = {
    "environment": "swe_main",
    "trajectory": [
        {"action": "ls\n", "observation": "a.py", "thought": "look", "response": "look\nls", "execution_time": 0.5},
        {"action": "submit", "observation": "", "thought": "", "response": "submit"},
    ],
    "history": [{"role": "system", "content": "S"}, {"role": "user", "content": "Fix the bug."}],
    "info": {"exit_status": "submitted", "model_stats": {"tokens_sent": 10}},
}
ATIF = {
    "schema_version": "ATIF-v1.5",
    "session_id": "s",
    "agent": {"name": "terminus", "version": "2.0", "model_name": "m", "tool_definitions": [{"type": "function"}]},
    "notes": "kept",
    "steps": [
        {"step_id": 1, "source": "system", "message": "Be brief."},
        {"step_id": 2, "timestamp": "2025-10-16T14:30:00Z", "source": "user", "message": "List files."},
        {
            "step_id": 3,
            "source": "agent",
            "message": "ok",
            "reasoning_content": "ls will do",
            "tool_calls": [
                {"tool_call_id": "a", "function_name": "bash", "arguments": {"command": "ls"}},
                {"tool_call_id": "b", "function_name": "bash", "arguments": {"command": "pwd"}},
            ],
            "observation": {"results": [{"source_call_id": "a", "content": "x"}, {"source_call_id": "b"}]},
            "metrics": {"prompt_tokens": 7, "completion_tokens": 3, "cost_usd": 0.01, "logprobs": [-0.5]},
        },
        {"step_id": 4, "source": "agent", "message": "There is x.", "is_copied_context": True},
    ],
    "final_metrics": {"total_cost_usd": 0.01},
}


SAMPLE = {
    "id": 1,
    "epoch": 1,
    "input": "Add 1 and 2.",
    "target": "3",
    "messages": [
        {"role": "user", "content": "attachment://a1"},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "reasoning": "easy"}, {"type": "text", "text": "I add."}],
            "tool_calls": [{"id": "x", "function": "add", "arguments": {"a": 1, "b": 2}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "x"},
        {"role": "assistant", "content": "3"},
    ],
    "scores": {"match": {"value": "C"}},
    "attachments": {"a1": "Add 1 and 2."},
}
INSPECT = {"version": 2, "status": "success", "eval": {"task": "sums", "model": "m", "created": "2026-01-01T00:00:00Z"}}


def _otel_span(start: int, **values: Any) -> dict[str, Any]:
    attributes = [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in values.items()]
    times = {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 10**9)}
    return {"traceId": "t", "spanId": str(start), "name": "chat", **times, "attributes": attributes}


_ASKED = {"role": "user", "parts": [{"type": "text", "content": "Weather?"}]}
_CALLED = {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "look", "arguments": {"at": "sky"}}]}
_SEEN = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": {"sun": True}}]}
_SAID = {"role": "assistant", "parts": [{"type": "text", "content": "Sunny."}]}
_SPANS = [
    _otel_span(
        2, gen_ai__input__messages=json.dumps([_ASKED, _CALLED, _SEEN]), gen_ai__output__messages=json.dumps([_SAID])
    ),
    _otel_span(1, gen_ai__input__messages=json.dumps([_ASKED]), gen_ai__output__messages=json.dumps([_CALLED])),
]
OTEL = {"resourceSpans": [{"scopeSpans": [{"spans": _SPANS}]}]}


def _restored(document: Any) -> list[Trajectory]:
    """What the reader makes of a document of ours, without the claims that it sets apart."""
    return [dataclasses.replace(one, claims=None) for one in read("atif", document, Split.TRAIN, ReadContext())]


def _as_collected(one: Trajectory) -> Trajectory:
    """A trusted trajectory as it was when it was played."""
    return dataclasses.replace(one, origin=TrajectoryOrigin.COLLECTED, origin_source="", origin_by="")


def _write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


# -- ATIF --------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(one=episodes)
def test_a_trajectory_survives_atif(one: Trajectory) -> None:
    document = json.loads(json.dumps(atif_format.write(one, {})))
    assert atif.Trajectory.model_validate(document).to_json_dict() == document
    assert _restored(document) == [one]


def test_a_hierarchical_episode_is_a_planner_with_sub_agents(golden: list[Trajectory]) -> None:
    (first, *_), flat = segment(golden[0]), golden[0]
    starts = {part.start: part.subgoal for part in segment(flat)}
    subgoal, steps = first.subgoal, []
    for step in flat.steps:
        subgoal = starts.get(step.index, subgoal)
        steps.append(dataclasses.replace(step, subgoal=subgoal, new_subgoal=step.index in starts))
    hierarchical = dataclasses.replace(flat, steps=tuple(steps))
    document = atif_format.write(hierarchical, {})
    assert [step["message"] for step in document["steps"][1:]] == list(starts.values())
    assert len(document["subagent_trajectories"]) == len(starts)
    assert _restored(document) == [hierarchical]


def test_another_tools_atif_comes_back_as_it_was(lake: Lake, tmp_path: Path) -> None:
    child = {**ATIF, "trajectory_id": "child", "notes": "sub"}
    parent = {**ATIF, "schema_version": "ATIF-v1.7", "subagent_trajectories": [child]}
    path = _write(tmp_path / "run.json", parent)
    assert import_files(lake, [path], "atif") == Imported(trajectories=2)
    assert import_files(lake, [path], "atif") == Imported(known=2)
    ids = select_ids(lake, "true")
    export(lake, tmp_path / "out", "atif", ids)
    written = [json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()]
    assert sorted(written, key=lambda one: one["notes"]) == [parent, child]
    (first, last), *_ = (trajectory.steps for trajectory in lake.trajectories(ids))
    assert first.action == 'bash {"command":"ls"}\nbash {"command":"pwd"}'
    assert (first.thought, first.prompt_tokens, first.logprobs) == ("ls will do\nok", 7, (-0.5,))
    assert first.observation == "Be brief.\n\nList files."
    assert (last.action, last.trainable) == ("There is x.", False)
    assert import_files(lake, [tmp_path / "out"], "atif").trajectories == 0


def test_screenshots_travel_beside_the_document(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    steps = tuple(dataclasses.replace(step, screenshot=PIXEL.sha256) for step in golden[0].steps)
    seen = dataclasses.replace(golden[0], steps=steps, images=(PIXEL,))
    lake.append([seen, golden[1]], "episodes")
    assert lake.images(seen.trajectory_id) == {PIXEL.sha256: PIXEL}
    assert lake.images(golden[1].trajectory_id) == {}
    assert lake.sql("select media_type, octet_length(data) as n from images").to_pylist() == [
        {"media_type": "image/png", "n": len(PIXEL.data)}
    ]
    export(lake, tmp_path / "out", "atif", [seen.trajectory_id])
    with Lake(tmp_path / "other", create=True) as other:
        import_files(other, [tmp_path / "out"], "atif", trust=True)
        (back,) = other.trajectories([seen.trajectory_id])
        assert _as_collected(back) == dataclasses.replace(seen, images=())
        assert other.images(seen.trajectory_id) == {PIXEL.sha256: PIXEL}


# -- other tools -------------------------------------------------------------------------------------------------------


def test_chat_messages_come_in_and_go_out(lake: Lake, tmp_path: Path) -> None:
    import_files(lake, [_write(tmp_path / "log.jsonl", CHAT)], "chat")
    ids = select_ids(lake, "true")
    (one,) = lake.trajectories(ids)
    assert [step.action for step in one.steps] == ['look {"at": "room"}', "Done."]
    assert [step.observation for step in one.steps] == ["You are a cook.\n\nMake soup.", "A pot."]
    assert (one.instruction, one.success, one.stop_reason) == ("Make soup.", True, StopReason.SUCCESS)
    export(lake, tmp_path / "out", "chat", ids)
    assert json.loads((tmp_path / "out" / "chat.jsonl").read_text()) == CHAT


def test_swe_agent_runs_come_in_and_go_out(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    _write(tmp_path / "runs" / "fix.traj", SWE)
    import_files(lake, [tmp_path / "runs"], "swe-agent", Split.DEV)
    ids = select_ids(lake, "split = 'dev'")
    (one,) = lake.trajectories(ids)
    assert [(step.observation, step.action) for step in one.steps] == [
        ("S\n\nFix the bug.", "ls"),
        ("a.py", "submit"),
    ]
    assert (one.stop_reason, one.success, one.tokens) == (StopReason.UNKNOWN, None, None)
    export(lake, tmp_path / "out", "swe-agent", ids)
    assert json.loads((tmp_path / "out" / f"{ids[0]}.traj").read_text()) == SWE


def test_inspect_logs_come_in_a_sample_at_a_time_and_go_out(lake: Lake, tmp_path: Path) -> None:
    failed = {**SAMPLE, "epoch": 2, "scores": {"match": {"value": "I"}}}
    path = _write(tmp_path / "log.json", {**INSPECT, "samples": [SAMPLE, failed, {"id": 3}]})
    done = import_files(lake, [path], "inspect")
    assert (done.trajectories, done.quarantined) == (2, 1)
    assert done.reasons == [f"{path}:3: sample.epoch: Field required"]
    ids = select_ids(lake, "success")
    (one,) = lake.trajectories(ids)
    assert [(step.observation, step.action) for step in one.steps] == [
        ("Add 1 and 2.", 'add {"a":1,"b":2}'),
        ("3", "3"),
    ]
    assert one.steps[0].thought == "easy\nI add."
    export(lake, tmp_path / "out", "inspect", ids)
    assert json.loads((tmp_path / "out" / f"{ids[0]}.json").read_text()) == {**INSPECT, "samples": [SAMPLE]}


def test_genai_spans_come_in_a_trace_at_a_time(lake: Lake, tmp_path: Path) -> None:
    done = import_files(lake, [_write(tmp_path / "spans.jsonl", OTEL, {"resourceSpans": []})], "otel")
    assert (done.trajectories, done.quarantined) == (1, 1)
    assert "were messages captured?" in done.reasons[0]
    (one,) = lake.trajectories(select_ids(lake, "true"))
    assert [(step.observation, step.action) for step in one.steps] == [
        ("Weather?", 'look {"at":"sky"}'),
        ('{"sun":true}', "Sunny."),
    ]
    assert (one.instruction, one.steps[0].seconds) == ("Weather?", 1.0)


INSPECT_READER = """
import json, sys
from inspect_ai.log import read_eval_log, write_eval_log
log = read_eval_log(sys.argv[1])
print(json.dumps([[message.role, message.text] for message in log.samples[0].messages]))
write_eval_log(log, sys.argv[2], format="json")
"""


@pytest.mark.slow
def test_inspect_itself_reads_what_we_write_and_we_read_what_it_writes(
    lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    lake.append(golden[:1], "episode")
    export(lake, tmp_path / "out", "inspect", [golden[0].trajectory_id])
    (ours,) = (tmp_path / "out").iterdir()
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "inspect-ai==0.3.285"]
    subprocess.run(install, check=True)
    theirs = tmp_path / "theirs.json"
    command = [sys.executable, "-c", INSPECT_READER, str(ours), str(theirs)]
    environment = {"PYTHONPATH": str(packages), "HOME": str(tmp_path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    spoken = [text for role, text in json.loads(done.stdout) if role == "assistant"]
    assert spoken == [step.action for step in golden[0].steps]
    with Lake(tmp_path / "other", create=True) as other:
        assert import_files(other, [theirs], "inspect").trajectories == 1
        (back,) = other.trajectories(select_ids(other, "true"))
    assert [step.action for step in back.steps] == spoken
    assert back.success


@pytest.mark.parametrize("format", ["chat", "swe-agent", "inspect", "otel"])
def test_our_own_episodes_are_read_back_from_other_forms(
    lake: Lake, golden: list[Trajectory], tmp_path: Path, format: str
) -> None:
    lake.append(golden, "episodes")
    export(lake, tmp_path / "out", format, select_ids(lake, "true"))
    with Lake(tmp_path / "other", create=True) as other:
        assert import_files(other, [tmp_path / "out"], format).trajectories == len(golden)
        actions = other.sql("select list(action order by index) as a from steps group by trajectory_id")[
            "a"
        ].to_pylist()
    assert sorted(actions) == sorted([step.action for step in trajectory.steps] for trajectory in golden)


# -- tuning rows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def curated(lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]) -> Lake:
    lake.append([*golden, *noisy], "episodes")
    routes = [Route(trajectory.trajectory_id, RouteTo.SUPERVISED, True, "", "") for trajectory in golden]
    routes += [Route(trajectory.trajectory_id, RouteTo.CONTINUAL, False, "", "") for trajectory in noisy]
    lake.append_facts("routes", routes_to_arrow(routes), "routes")
    lake.append_facts(
        "segments",
        segments_to_arrow([part for trajectory in golden for part in segment(trajectory)]),
        "s",
        key=["index"],
    )
    return lake


def test_sft_rows_have_one_file_a_role(curated: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["export", str(tmp_path / "sft"), "--format", "sft", "--data-dir", str(curated.root)]
    )
    assert done.exit_code == 0, done.output
    rows = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "sft").glob("*.jsonl")
    }
    for role in rows:
        loaded = load_dataset(str(tmp_path / "sft"), role, cache_dir=str(tmp_path / "cache"))["train"]
        assert list(loaded["trajectory_id"]) == [row["trajectory_id"] for row in rows[role]]
    completed = [[part for part in segment(trajectory) if part.completed] for trajectory in golden]
    assert len(rows["flat"]) == len(golden)
    assert len(rows["planner"]) == sum(bool(parts) for parts in completed)
    assert len(rows["executor"]) == sum(map(len, completed))
    by_id = {row["trajectory_id"]: row["messages"] for row in rows["planner"]}
    spoken = [message["content"] for message in by_id[golden[0].trajectory_id] if message["role"] == "assistant"]
    assert spoken == [part.subgoal for part in completed[0]]
    assert {message["role"] for row in rows["executor"] for message in row["messages"]} == {
        "system",
        "user",
        "assistant",
    }


def test_sharegpt_and_injected_mistakes(curated: Lake, noisy: list[Trajectory], tmp_path: Path) -> None:
    ids = select_ids(curated, "route = 'continual'")
    export(curated, tmp_path / "sharegpt", "sharegpt", ids)
    rows = [json.loads(line) for line in (tmp_path / "sharegpt" / "sharegpt.jsonl").read_text().splitlines()]
    assert {turn["from"] for row in rows for turn in row["conversations"]} == {"system", "human", "gpt"}
    export(curated, tmp_path / "chat", "chat", ids)
    muted = (tmp_path / "chat" / "chat.jsonl").read_text().count('"weight": 0')
    assert muted == sum(not step.trainable for trajectory in noisy for step in trajectory.steps) > 0


def test_dpo_pairs_part_at_one_action(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    good = golden[0]
    wrong = dataclasses.replace(good.steps[2], action="drop knife")
    bad = dataclasses.replace(
        good,
        trajectory_id="0" * 32,
        policy_id="noisy",
        steps=(*good.steps[:2], wrong),
        length=3,
        success=False,
        stop_reason=StopReason.STEP_LIMIT,
    )
    lake.append([good, bad], "episodes")
    routes = [
        Route(good.trajectory_id, RouteTo.SUPERVISED, True, "", ""),
        Route("0" * 32, RouteTo.CONTINUAL, False, "", ""),
    ]
    lake.append_facts("routes", routes_to_arrow(routes), "routes")
    export(lake, tmp_path / "dpo", "dpo", [good.trajectory_id])
    (row,) = [json.loads(line) for line in (tmp_path / "dpo" / "dpo.jsonl").read_text().splitlines()]
    assert row["chosen"] == [{"role": "assistant", "content": good.steps[2].action}]
    assert row["rejected"] == [{"role": "assistant", "content": "drop knife"}]
    assert [one["content"] for one in row["prompt"] if one["role"] == "assistant"] == [
        step.action for step in good.steps[:2]
    ]


def test_without_a_failure_there_is_no_pair(curated: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no task has both"):
        export(curated, tmp_path / "dpo", "dpo", [golden[0].trajectory_id])
    assert list(tmp_path.glob("dpo*")) == []


def test_parquet_holds_every_kind(curated: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    counts = export(curated, tmp_path / "out", "parquet", select_ids(curated, "verified = 1"))
    assert counts["steps.parquet"] == sum(trajectory.length for trajectory in golden)
    assert pq.read_table(tmp_path / "out" / "routes.parquet").num_rows == len(golden)


def test_an_export_appears_whole_or_not_at_all(curated: Lake, tmp_path: Path) -> None:
    ids = select_ids(curated, "true")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(LakeError, match="not empty"):
        export(curated, tmp_path / "full", "chat", ids)
    with pytest.raises(LakeError, match="no trajectory"):
        export(curated, tmp_path / "out", "chat", [])

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(curated, tmp_path / "out", "chat", ids, stop)
    assert not (tmp_path / "out").exists()
    with pytest.raises(LakeError, match="left by an export"):
        export(curated, tmp_path / "out", "chat", ids)


# -- bad input ---------------------------------------------------------------------------------------------------------

BROKEN = [
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"messages": NaN}', "NaN is no JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"[]", "valid dictionary"),
    (b'{"messages": "hello"}', "messages: Input should be a valid list"),
    (b'{"messages": [{"content": "x"}]}', "messages.0.role: Field required"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "the agent never acted"),
    (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "does not fit the data contract"),
    (b'{"messages": [], "score": 1e999}', "too large a number"),
]


def test_bad_lines_are_quarantined_with_their_place_and_the_rest_is_taken(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(CHAT).encode(), *(line for line, _ in BROKEN), b"", json.dumps({**CHAT, "id": 2}).encode()]
    path.write_bytes(b"\n".join(lines))
    arguments = ["import", str(path), "--format", "chat", "--data-dir", str(lake.root), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trajectories"] == 2
    assert json.loads(done.stdout)["quarantined"] == len(BROKEN)
    rows = lake.sql("select source, line, reason from quarantined order by line").to_pylist()
    assert [row["line"] for row in rows] == list(range(2, len(BROKEN) + 2))
    assert {row["source"] for row in rows} == {str(path)}
    for row, (_, reason) in zip(rows, BROKEN, strict=True):
        assert reason in row["reason"]
        assert "\n" not in row["reason"]
    again = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (again["trajectories"], again["known"]) == (0, 2)
    assert lake.sql("from quarantined").num_rows == len(BROKEN)


def test_a_list_of_records_is_read_one_by_one(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps([CHAT, {"messages": 1}]))
    done = import_files(lake, [path], "chat")
    assert (done.trajectories, done.quarantined) == (1, 1)
    assert done.reasons == [f"{path}:2: messages: Input should be a valid list"]


def test_what_is_not_there_changes_nothing(lake: Lake, tmp_path: Path) -> None:
    good = _write(tmp_path / "log.jsonl", CHAT)
    with pytest.raises(LakeError, match="no file at"):
        import_files(lake, [good, tmp_path / "nothing.jsonl"], "chat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LakeError, match=r"no \.traj files"):
        import_files(lake, [tmp_path / "empty"], "swe-agent")
    assert lake.snapshot() == 0
    nowhere = tmp_path / "new lake"
    arguments = ["import", str(tmp_path / "nothing.jsonl"), "--format", "chat", "--data-dir", str(nowhere)]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert not nowhere.exists()


def test_ids_fit_the_catalog(any_lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    named = [
        dataclasses.replace(golden[0], trajectory_id=name) for name in ("x" * 65, "a\x00b", "../up", "it's", "good")
    ]
    path = _write(tmp_path / "runs.jsonl", *(atif_format.write(one, {}) for one in named))
    trusted = import_files(any_lake, [path], "atif", trust=True)
    assert (trusted.trajectories, trusted.quarantined) == (1, 4)
    claimed = import_files(any_lake, [path], "atif")
    assert (claimed.trajectories, claimed.quarantined) == (5, 0)


def test_the_commands_offer_every_format() -> None:
    assert {str(one) for one in From} == READERS.keys() == SUFFIXES.keys()
    assert {str(one) for one in To} == {*DOCUMENTS, *LINES, *TUNING, "parquet"}


def test_images_outside_the_records_folder_are_refused(lake: Lake, tmp_path: Path) -> None:
    part = {"type": "image", "source": {"media_type": "image/png", "path": "../../etc/passwd"}}
    step = {"step_id": 1, "source": "user", "message": [part]}
    path = _write(tmp_path / "run.json", {**ATIF, "schema_version": "ATIF-v1.6", "steps": [step]})
    assert "lies outside" in import_files(lake, [path], "atif").reasons[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RESPONSES = {
    "responses_create_params": {"input": [{"role": "user", "content": "count"}], "tools": [{"name": "ls"}]},
    "response": {
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "look"}]},
            {"type": "function_call", "call_id": "a", "name": "ls", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "one"}]},
        ],
        "usage": {"total_tokens": 9},
    },
    "reward": 1.0,
}
SESSION = {
    "session": "s",
    "entries": [
        {"type": "user", "message": {"role": "user", "content": "read a"}, "timestamp": "2026-01-31T11:00:00Z"},
        {
            "type": "assistant",
            "message": {
                "id": "m",
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "Read", "input": {"path": "a"}}],
                "usage": {"input_tokens": 2, "output_tokens": 1},
            },
        },
    ],
}
EVENTS = {
    "history": [
        {"id": 0, "source": "agent", "action": "system", "args": {"content": "Be brief.", "tools": [{"name": "run"}]}},
        {"id": 1, "source": "user", "action": "message", "args": {"content": "count"}},
        {"id": 2, "source": "agent", "action": "run", "args": {"command": "ls", "thought": "look"}},
        {"id": 3, "source": "environment", "observation": "run", "content": "a b", "cause": 2},
        {"id": 4, "source": "agent", "action": "message", "args": {"content": "two"}},
    ],
    "resolved": True,
}
GENERATION = {
    "traceId": "t",
    "type": "GENERATION",
    "input": [{"role": "user", "content": "count"}],
    "output": {"role": "assistant", "content": "two"},
    "usageDetails": {"input": 3, "output": 1},
    "startTime": "2026-01-31T11:00:00Z",
}
LLM_RUN = {
    "trace_id": "t",
    "run_type": "llm",
    "inputs": {"messages": [[{"lc": 1, "id": ["langchain", "HumanMessage"], "kwargs": {"content": "count"}}]]},
    "outputs": {"generations": [[{"text": "two", "message": {"id": ["AIMessage"], "kwargs": {"content": "two"}}}]]},
    "prompt_tokens": 3,
}
SEEDS = {
    "openhands": EVENTS,
    "harbor": ATIF,
    "langfuse": {"observations": [GENERATION], "scores": [{"name": "reward", "value": 1}]},
    "langsmith": {"runs": [LLM_RUN]},
    "atif": ATIF,
    "chat": CHAT,
    "swe-agent": SWE,
    "inspect": {**INSPECT, "sample": SAMPLE},
    "otel": OTEL,
    "responses": RESPONSES,
    "claude-code": SESSION,
}


@st.composite
def damaged(draw: st.DrawFn, seed: Any) -> Any:
    """A good record with one value, anywhere in it, replaced by any other or taken away."""
    whole = json.loads(json.dumps(seed))
    place = whole
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(list(keys)))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if draw(st.booleans()):
            place[key] = draw(json_values)
        else:
            del place[key]
        return whole


@pytest.mark.parametrize("format", sorted(SEEDS))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_readers_give_trajectories_or_a_reason(format: str, data: st.DataObject) -> None:
    record = data.draw(json_values | damaged(SEEDS[format]))
    try:
        found = read(format, record, Split.TRAIN, ReadContext())
    except RecordError as error:
        assert "\n" not in str(error)
    else:
        assert all(trajectory.length == len(trajectory.steps) > 0 for trajectory in found)


def test_a_forged_document_of_our_own_is_refused(golden: list[Trajectory]) -> None:
    for damage in ({"length": 99}, {"split": "none"}, {"stop_reason": 3}, {"extra": None, "length": None}):
        document = atif_format.write(golden[0], {})
        document["extra"]["flywheel"] |= damage
        with pytest.raises(RecordError, match=r"extra\.flywheel"):
            read("atif", document, Split.TRAIN, ReadContext())
