"""Readers: what other tools really write comes in as messages, nothing of it flattened, lost or made up."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from flywheel.conversation import opening_of
from flywheel.datasets.formats.catalog import read
from flywheel.datasets.formats.exporting import export, select_ids
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.formats.records import ReadContext
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import RecordError
from flywheel.filters.batch import batch_of
from flywheel.filters.verifiers.integrity import Integrity
from flywheel.messages import Message, ToolCall, openai_message
from flywheel.trajectory import Split, StopReason, Trajectory

PNG = b"\x89PNG\r\n\x1a\n and no more"
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
AT = {"at": "/srv"}
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}


def chat(*messages: dict[str, Any], context: ReadContext | None = None, **more: Any) -> Trajectory:
    record = {"messages": list(messages), **more}
    (run,) = read("chat", record, Split.TRAIN, context or ReadContext())
    return run


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# -- chat --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        assistant(tool_calls=[{"id": "c1", "function": {"name": "ls", "arguments": '{"at":"/srv"}'}}]),
        assistant(tool_calls=[{"id": "c1", "type": "function", "function": {"name": "ls", "arguments": AT}}]),
        assistant([{"type": "tool_use", "id": "c1", "name": "ls", "input": AT}]),
    ],
)
def test_a_tool_call_is_read_in_every_spelling(answer: dict[str, Any]) -> None:
    run = chat(user("count"), answer)
    assert run.steps[0].output == Message("assistant", tool_calls=(ToolCall("c1", "ls", '{"at":"/srv"}'),))
    assert run.steps[0].action == 'ls {"at":"/srv"}'


def test_a_function_call_of_the_older_form_is_a_tool_call(lake: Lake, tmp_path: Path) -> None:
    record = {
        "messages": [
            user("count"),
            assistant(function_call={"name": "ls", "arguments": "{}"}),
            {"role": "function", "name": "ls", "content": "a b"},
            assistant("two"),
        ],
        "functions": [{"name": "ls", "parameters": {}}],
    }
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    import_files(lake, [tmp_path / "log.jsonl"], "chat")
    assert lake.sql("select name, result from tool_calls").to_pylist() == [{"name": "ls", "result": "a b"}]
    assert lake.sql("select tools ->> '$[0].function.name' as name from trajectories")["name"].to_pylist() == ["ls"]


@pytest.mark.parametrize(
    "answer",
    [
        assistant("42", reasoning_content="6*7"),
        assistant("42", reasoning="6*7"),
        assistant([{"type": "thinking", "thinking": "6*7"}, {"type": "text", "text": "42"}]),
        assistant([{"type": "reasoning", "reasoning": "6*7"}, {"type": "text", "text": "42"}]),
        assistant("42", reasoning=[{"type": "summary_text", "text": "6*7"}]),
    ],
)
def test_reasoning_is_read_under_all_its_names(answer: dict[str, Any]) -> None:
    run = chat(user("six times seven"), answer)
    assert (run.steps[0].thought, run.steps[0].action) == ("6*7", "42")
    assert run.steps[0].output == Message("assistant", "42", reasoning="6*7")


def test_results_and_errors_of_tools_in_anthropics_form() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "log tmp"}]},
        {"type": "tool_result", "tool_use_id": "b", "content": "no such file", "is_error": True},
        {"type": "text", "text": "go on"},
    ]
    run = chat(user("look"), assistant("I look."), user(results), assistant("done"), system="Be brief.")
    assert run.steps[1].inputs == (
        Message("tool", "log tmp", tool_call_id="a"),
        Message("tool", tool_call_id="b", error="no such file"),
        Message("user", "go on"),
    )
    assert run.steps[1].observation == "log tmp\n\nno such file\n\ngo on"
    assert run.system == "Be brief."


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URL.partition(",")[2]}},
        {"type": "image", "image": URL},
    ],
)
def test_images_are_kept_in_every_spelling(part: dict[str, Any]) -> None:
    run = chat(user([{"type": "text", "text": "what is this"}, part]), assistant("a dot"))
    (image,) = run.images
    assert (image.data, run.steps[0].screenshot) == (PNG, image.sha256)
    (message,) = run.steps[0].inputs or ()
    assert json.loads(message.parts or "")[1] == {"sha256": image.sha256, "type": "image"}


def test_a_part_that_is_not_understood_is_kept_and_counted() -> None:
    context = ReadContext()
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    run = chat(user([{"type": "text", "text": "listen"}, sound]), assistant("a bell"), context=context)
    (message,) = run.steps[0].inputs or ()
    assert json.loads(message.parts or "") == [{"text": "listen", "type": "text"}, sound]
    assert context.unread == {"a content part of type input_audio": 1}


def test_a_refusal_is_an_answer() -> None:
    assert chat(user("do it"), assistant(refusal="I will not")).steps[0].action == "I will not"
    assert chat(user("do it"), assistant([{"type": "refusal", "refusal": "No."}])).steps[0].action == "No."


def test_fields_that_are_not_understood_are_counted_by_name() -> None:
    context = ReadContext()
    chat(user("a") | {"timestamp": 1}, assistant("b", annotations=[]), context=context, tags=["x"])
    assert context.unread == {"messages[].timestamp": 1, "messages[].annotations": 1, "tags": 1}


def test_what_nobody_said_is_unknown() -> None:
    run = chat(user("a"), assistant("b"))
    assert (run.success, run.score, run.total_reward, run.tokens, run.cost) == (None,) * 5
    (step,) = run.steps
    assert (step.reward, step.progress, step.prompt_tokens, step.completion_tokens, step.cost) == (None,) * 5
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "cost": 0.25}
    counted = chat(user("a"), assistant("b"), reward=0.5, success=True, score=1, usage=usage)
    assert (
        counted.success,
        counted.score,
        counted.total_reward,
        counted.tokens,
        counted.cost,
    ) == (True, 1.0, 0.5, 7, 0.25)
    assert counted.steps[0].reward == 0.5


def test_what_was_said_last_is_kept() -> None:
    run = chat(user("a"), assistant("b"), user("thanks"))
    assert (run.final_inputs, run.final_observation) == ((Message("user", "thanks"),), "thanks")


# -- from the log to the row -------------------------------------------------------------------------------------------


def test_a_tuning_row_says_what_the_log_said(lake: Lake, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"at": "/srv"}'}}
    messages = [
        {"role": "system", "content": "You are terse."},
        user("count the files of /srv"),
        assistant("", reasoning_content="look", tool_calls=[call]),
        {"role": "tool", "content": "a b", "tool_call_id": "c1", "name": "ls"},
        assistant("three", weight=0),
        user("sure?"),
        assistant("two"),
    ]
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": messages, "tools": [TOOL]}) + "\n")
    import_files(lake, [tmp_path / "log.jsonl"], "chat")
    ids = select_ids(lake, "true")
    export(lake, tmp_path / "sft", "sft", ids)
    row = json.loads((tmp_path / "sft" / "flat.jsonl").read_text())
    assert (row["messages"], json.loads(row["tools"])) == (messages, [TOOL])
    export(lake, tmp_path / "sharegpt", "sharegpt", ids)
    turns = json.loads((tmp_path / "sharegpt" / "sharegpt.jsonl").read_text())["conversations"]
    speakers = ["system", "human", "function_call", "observation", "gpt", "human", "gpt"]
    assert [turn["from"] for turn in turns] == speakers
    assert [turn["value"] for turn in turns if turn.get("weight") == 0] == ["three"]


def test_hugging_face_loads_a_lone_file_and_keeps_tools_apart(lake: Lake, tmp_path: Path) -> None:
    def record(name: str, parameter: str) -> dict[str, Any]:
        function = {"name": name, "parameters": {"type": "object", "properties": {parameter: {"type": "string"}}}}
        call = {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps({parameter: "x"})}}
        messages = [user(name), assistant("", tool_calls=[call]), {"role": "tool", "content": "y", "tool_call_id": "c"}]
        return {"messages": [*messages, assistant("z")], "tools": [{"type": "function", "function": function}]}

    records = [record("ls", "path"), record("add", "number")]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    import_files(lake, [tmp_path / "log.jsonl"], "chat")
    export(lake, tmp_path / "sft", "sft", select_ids(lake, "true"))
    rows = load_dataset(str(tmp_path / "sft"), cache_dir=str(tmp_path / "cache"))["train"]
    tools = {row["messages"][0]["content"]: json.loads(row["tools"]) for row in rows}
    assert tools == {each["messages"][0]["content"]: each["tools"] for each in records}


def test_everything_that_the_agent_saw_is_in_our_own_rows(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    lake.append(golden, "episodes")
    export(lake, tmp_path / "sft", "sft", select_ids(lake, "true"))
    rows = [json.loads(line) for line in (tmp_path / "sft" / "flat.jsonl").read_text().splitlines()]
    assert {row["trajectory_id"] for row in rows} == {run.trajectory_id for run in golden}
    for run in golden:
        (row,) = (row for row in rows if row["trajectory_id"] == run.trajectory_id)
        seen = [message["content"] for message in row["messages"] if message["role"] == "user"]
        assert len(seen) == run.length
        for step, text in zip(run.steps, seen, strict=True):
            assert all(part in text for part in (step.feedback, step.document, step.observation))


# -- ATIF --------------------------------------------------------------------------------------------------------------


def atif(*steps: dict[str, Any], **more: Any) -> list[Trajectory]:
    numbered = [{"step_id": number, **step} for number, step in enumerate(steps, start=1)]
    agent = {"name": "terminus", "version": "2", "model_name": "big", **more.pop("agent", {})}
    record = {"schema_version": "ATIF-v1.8", "session_id": "s", "agent": agent, "steps": numbered, **more}
    return read("atif", record, Split.TRAIN, ReadContext())


ASKED = {"source": "user", "message": "fix it"}


def test_results_of_parallel_calls_come_in_the_order_of_the_calls() -> None:
    calls = [{"tool_call_id": name, "function_name": name, "arguments": {}} for name in ("left", "right")]
    results = [{"source_call_id": name, "content": f"{name} says"} for name in ("right", "left")]
    acted = {"source": "agent", "message": "", "tool_calls": calls, "observation": {"results": results}}
    (run,) = atif(ASKED, acted, {"source": "agent", "message": "done"})
    assert [message.tool_call_id for message in run.steps[1].inputs or ()] == ["left", "right"]
    assert run.steps[1].observation == "left says\n\nright says"


def test_the_model_is_part_of_who_acted() -> None:
    second = {"source": "agent", "message": "b", "model_name": "small"}
    (run,) = atif(ASKED, {"source": "agent", "message": "a"}, second)
    assert [step.policy_id for step in run.steps] == ["terminus/big@2", "terminus/small@2"]


def test_steps_without_a_model_call_teach_nobody() -> None:
    (run,) = atif(ASKED, {"source": "agent", "message": "a", "llm_call_count": 0}, {"source": "agent", "message": "b"})
    assert [step.trainable for step in run.steps] == [False, True]


def test_usage_is_of_the_steps_and_of_the_run() -> None:
    metrics = {"prompt_tokens": 100, "completion_tokens": 10, "cost_usd": 0.01}
    (run,) = atif(ASKED, {"source": "agent", "message": "a", "metrics": metrics})
    assert (run.tokens, run.cost, run.steps[0].cost) == (110, 0.01, 0.01)
    totals = {"total_prompt_tokens": 200, "total_completion_tokens": 5, "total_cost_usd": 0.5}
    (run,) = atif(ASKED, {"source": "agent", "message": "a", "metrics": metrics}, final_metrics=totals)
    assert (run.tokens, run.cost) == (205, 0.5)


def test_sub_agents_runs_are_linked() -> None:
    child = {
        "schema_version": "ATIF-v1.8",
        "session_id": "c",
        "trajectory_id": "c",
        "agent": {"name": "helper", "version": "1"},
        "steps": [{"step_id": 1, **ASKED}, {"step_id": 2, "source": "agent", "message": "ok"}],
    }
    parent, run = atif(ASKED, {"source": "agent", "message": "a"}, subagent_trajectories=[child])
    assert (parent.parent_trajectory_id, run.parent_trajectory_id) == (None, parent.trajectory_id)


# -- SWE-agent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("issue", ["Issue A", [{"type": "text", "text": "Issue A"}]])
def test_the_task_is_the_issue_and_not_the_demonstration(issue: Any) -> None:
    history = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "How a colon was repaired", "is_demo": True},
        {"role": "user", "content": issue},
    ]
    stats = {"instance_cost": 0.5, "tokens_sent": 50, "tokens_received": 3, "api_calls": 1}
    turn = {"action": "ls", "observation": "a.py", "response": "ls", "thought": "look", "state": "{}"}
    record = {"trajectory": [turn], "history": history, "info": {"exit_status": "submitted", "model_stats": stats}}
    (run,) = read("swe-agent", record, Split.TRAIN, ReadContext())
    assert (run.instruction, run.system, run.tokens, run.cost) == ("Issue A", "s", 53, 0.5)
    assert "How a colon was repaired" in run.steps[0].observation


# -- Inspect -----------------------------------------------------------------------------------------------------------


def inspect(**sample: Any) -> Trajectory:
    messages = [user("q"), assistant("a")]
    record = {"eval": {"task": "t", "model": "m"}, "sample": {"id": 1, "epoch": 1, "messages": messages, **sample}}
    (run,) = read("inspect", record, Split.TRAIN, ReadContext())
    return run


def test_a_tools_error_is_what_the_agent_saw() -> None:
    call = {"id": "1", "function": "bash", "arguments": {"cmd": "sleep 99"}, "type": "function"}
    broken = {"role": "tool", "tool_call_id": "1", "function": "bash", "content": "", "error": {"message": "timed out"}}
    run = inspect(messages=[user("wait"), assistant("", tool_calls=[call]), broken, assistant("it hangs")])
    assert run.steps[1].inputs == (Message("tool", tool_call_id="1", name="bash", error="timed out"),)
    assert run.steps[1].observation == "timed out"


def test_attachments_are_put_in_place_wherever_they_stand() -> None:
    asked = [{"type": "image", "image": "attachment://i"}, {"type": "text", "text": "attachment://t"}]
    run = inspect(messages=[user(asked), assistant("a dot")], attachments={"i": URL, "t": "what is this"})
    assert (run.instruction, [image.data for image in run.images]) == ("what is this", [PNG])


@pytest.mark.parametrize(
    ("scores", "success"),
    [
        ({"m": {"value": "C"}, "n": {"value": 1}}, True),
        ({"m": {"value": "C"}, "n": {"value": "I"}}, False),
        ({"m": {"value": "C"}, "n": {"value": {"a": 0.0}}}, None),
        ({"m": {"value": "C"}, "n": {"value": None}}, None),
        ({"m": {"value": "incorrect"}}, None),
        ({}, None),
    ],
)
def test_success_takes_every_score(scores: dict[str, Any], success: bool | None) -> None:
    assert inspect(scores=scores).success is success


def test_a_sample_that_broke_is_neither_success_nor_failure() -> None:
    run = inspect(scores={"m": {"value": "C"}}, error={"message": "sandbox died", "traceback": ""})
    assert (run.success, run.stop_reason, run.error) == (None, StopReason.INFRASTRUCTURE, "sandbox died")


def test_a_limit_that_ended_a_sample_is_told() -> None:
    run = inspect(limit={"type": "token", "limit": 1000})
    assert (run.success, run.stop_reason, run.steps[-1].truncated) == (None, StopReason.TOKEN_LIMIT, True)


def test_one_score_that_is_no_number_costs_one_sample(lake: Lake, tmp_path: Path) -> None:
    header = '{"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}, "samples": ['
    sample = '{"id": %d, "epoch": 1, "messages": [%s], "scores": {"m": {"value": %s}}}'
    messages = ", ".join(json.dumps(message) for message in (user("q"), assistant("a")))
    text = header + ", ".join(sample % (number, messages, value) for number, value in ((1, '"C"'), (2, "NaN"))) + "]}"
    (tmp_path / "log.json").write_text(text)
    done = import_files(lake, [tmp_path / "log.json"], "inspect")
    assert (done.trajectories, done.quarantined) == (1, 1)


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


def attribute(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def nested(value: Any) -> dict[str, Any]:
    """A value in OTLP's own form."""
    if isinstance(value, list):
        return {"arrayValue": {"values": [nested(inner) for inner in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [attribute(name, nested(inner)) for name, inner in value.items()]}}
    return {"stringValue": value}


def span(start: int, inputs: Any, outputs: Any, *more: dict[str, Any], trace: str = "t") -> dict[str, Any]:
    attributes = [attribute("gen_ai.input.messages", inputs), attribute("gen_ai.output.messages", outputs), *more]
    times = {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 10**9)}
    return {"traceId": trace, "spanId": str(start), "name": "chat", **times, "attributes": attributes}


def exported(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def text(value: Any) -> dict[str, Any]:
    return {"stringValue": json.dumps(value)}


PARTS_IN = [{"role": "user", "parts": [{"type": "text", "content": "count"}]}]
PARTS_OUT = [{"role": "assistant", "parts": [{"type": "text", "content": "two"}]}]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (text(PARTS_IN), text(PARTS_OUT)),
        (nested(PARTS_IN), nested(PARTS_OUT)),
        (text([user("count")]), text([assistant("two")])),
    ],
)
def test_messages_of_spans_are_read_in_every_form(inputs: Any, outputs: Any) -> None:
    (run,) = read("otel", exported(span(1, inputs, outputs)), Split.TRAIN, ReadContext())
    assert (run.steps[0].observation, run.steps[0].action, run.instruction) == ("count", "two", "count")


def test_system_instructions_and_blobs_of_spans_are_kept() -> None:
    picture = {"type": "blob", "mime_type": "image/png", "modality": "image", "content": URL.partition(",")[2]}
    asked = [{"role": "user", "parts": [{"type": "text", "content": "what is this"}, picture]}]
    system = attribute("gen_ai.system_instructions", text([{"type": "text", "content": "Be brief"}]))
    (run,) = read("otel", exported(span(1, text(asked), text(PARTS_OUT), system)), Split.TRAIN, ReadContext())
    assert (run.system, run.steps[0].observation) == ("Be brief", "Be brief\n\nwhat is this")
    assert [image.data for image in run.images] == [PNG]


def test_a_trace_in_several_batches_is_one_run(lake: Lake, tmp_path: Path) -> None:
    answered = [*PARTS_IN, *PARTS_OUT, {"role": "user", "parts": [{"type": "text", "content": "sure?"}]}]
    counts = {"gen_ai.usage.input_tokens": "9", "gen_ai.usage.output_tokens": "1"}
    used = [attribute(name, {"intValue": count}) for name, count in counts.items()]
    tool = {**span(3, text([]), text([])), "name": "execute_tool", "attributes": []}
    lines = [
        exported(span(1, text(PARTS_IN), text(PARTS_OUT), *used)),
        exported(span(1, text(PARTS_IN), text(PARTS_OUT), trace="other")),
        exported(tool),
        exported(span(2, text(answered), text(PARTS_OUT), *used)),
    ]
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    done = import_files(lake, [tmp_path / "spans.jsonl"], "otel")
    assert (done.trajectories, done.quarantined) == (2, 1)
    rows = lake.sql("select length, tokens from trajectories order by length").to_pylist()
    assert rows == [{"length": 1, "tokens": None}, {"length": 2, "tokens": 20}]
    assert import_files(lake, [tmp_path / "spans.jsonl"], "otel").known == 2


# -- the Responses API -------------------------------------------------------------------------------------------------


def test_items_of_one_answer_are_one_turn() -> None:
    asked = [{"type": "message", "role": "system", "content": "Be brief."}, {"role": "user", "content": "count"}]
    put_out = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "look first"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "ls", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "ls", "arguments": "{"},
        {"type": "function_call_output", "call_id": "a", "output": "x y"},
        {"type": "function_call_output", "call_id": "b", "output": "bad arguments"},
        [{"type": "message", "role": "assistant", "content": "two"}],
        {"type": "web_search_call", "id": "w"},
    ]
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    response = {"output": put_out, "model": "m", "usage": usage}
    rollout = {
        "responses_create_params": {"input": asked, "tools": [{"type": "function", "name": "ls", "parameters": {}}]}
    }
    context = ReadContext()
    (run,) = read("responses", {**rollout, "response": response, "reward": -1.0, "extra": 1}, Split.TRAIN, context)
    assert run.steps[0].output == Message(
        "assistant", "I look.", reasoning="look first", tool_calls=(ToolCall("a", "ls", "{}"), ToolCall("b", "ls", "{"))
    )
    assert [message.tool_call_id for message in run.steps[1].inputs or ()] == ["a", "b"]
    assert (run.steps[1].action, run.system, run.total_reward, run.tokens) == ("two", "Be brief.", -1.0, 7)
    assert json.loads(run.tools or "")[0]["function"]["name"] == "ls"
    assert context.unread == {"extra": 1, "a content part of type web_search_call": 1}


@pytest.mark.parametrize(
    "record",
    [
        {"request": {"input": "count"}, "response": {"output": [{"role": "assistant", "content": "two"}]}},
        {"input": "count", "output": [{"role": "assistant", "content": "two"}], "model": "m"},
    ],
)
def test_calls_of_a_gateway_are_read(record: dict[str, Any]) -> None:
    (run,) = read("responses", record, Split.TRAIN, ReadContext())
    assert (run.instruction, run.steps[0].action) == ("count", "two")


# -- Claude Code -------------------------------------------------------------------------------------------------------


def entry(number: int, message: dict[str, Any], **more: Any) -> dict[str, Any]:
    time = f"2026-01-31T11:00:0{number}.000Z"
    kind = message["role"]
    return {"uuid": str(number), "sessionId": "s", "type": kind, "message": message, "timestamp": time, **more}


def test_a_session_is_one_run_and_its_side_chain_another(lake: Lake, tmp_path: Path) -> None:
    usage = {"input_tokens": 200, "cache_read_input_tokens": 50, "output_tokens": 9}
    thought = {"id": "m1", "role": "assistant", "model": "claude", "content": [{"type": "thinking", "thinking": "hm"}]}
    call = {
        **thought,
        "content": [{"type": "tool_use", "id": "t", "name": "Read", "input": {"path": "a"}}],
        "usage": usage,
    }
    result = user([{"type": "tool_result", "tool_use_id": "t", "content": "text of a"}])
    entries = [
        {"type": "summary", "summary": "a session"},
        entry(0, user("read a")),
        entry(1, thought),
        entry(2, call),
        entry(3, result),
        entry(4, user("look around"), isSidechain=True),
        entry(5, {"id": "m2", "role": "assistant", "content": "nothing here"}, isSidechain=True),
        entry(6, {"id": "m3", "role": "assistant", "content": "done"}),
    ]
    path = tmp_path / "session.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in entries) + "no JSON\n")
    done = import_files(lake, [path], "claude-code")
    assert (done.trajectories, done.quarantined) == (2, 1)
    rows = lake.sql(
        """select thought, action, observation, prompt_tokens, completion_tokens from steps
           join trajectories using (trajectory_id) where instruction = 'read a' order by "index" """
    ).to_pylist()
    assert rows == [
        {"thought": "hm", "action": 'Read {"path":"a"}', "observation": "read a", "prompt_tokens": 250}
        | {"completion_tokens": 9},
        {"thought": "", "action": "done", "observation": "text of a", "prompt_tokens": None, "completion_tokens": None},
    ]
    assert import_files(lake, [path], "claude-code").known == 2
    sides = lake.sql(
        """select side.instruction as side, main.instruction as main from trajectories side
           join trajectories main on side.parent_trajectory_id = main.trajectory_id"""
    ).to_pylist()
    assert sides == [{"side": "look around", "main": "read a"}]


def test_thinking_in_tags_is_reasoning() -> None:
    run = chat(user("six times seven"), assistant("<think>\n6*7\n</think>\n\n42"))
    assert run.steps[0].output == Message("assistant", "42", reasoning="6*7")


def test_what_came_before_a_traces_first_span_is_context() -> None:
    before = [{"role": "system", "content": "Be brief."}, user("do A"), assistant("did A"), user("do B")]
    (run,) = read("otel", exported(span(1, text(before), text(PARTS_OUT))), Split.TRAIN, ReadContext())
    assert (run.system, run.instruction) == ("Be brief.", "do A")
    assert [(step.action, step.trainable) for step in run.steps] == [("did A", False), ("two", True)]


def test_blocks_of_one_answer_are_one_turn_whatever_stands_between_them(lake: Lake, tmp_path: Path) -> None:
    def use(name: str) -> dict[str, Any]:
        block = {"type": "tool_use", "id": name, "name": "Read", "input": {}}
        return {"id": "m", "role": "assistant", "content": [block], "usage": {"input_tokens": 100, "output_tokens": 10}}

    def result(name: str) -> dict[str, Any]:
        return user([{"type": "tool_result", "tool_use_id": name, "content": f"of {name}"}])

    entries = [user("read both"), use("a"), result("a"), use("b"), result("b")]
    lines = [entry(number, message) for number, message in enumerate(entries)]
    lines.append(entry(6, {"id": "n", "role": "assistant", "content": "done"}))
    (tmp_path / "session.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_files(lake, [tmp_path / "session.jsonl"], "claude-code")
    steps = lake.sql('select prompt_tokens, observation from steps order by "index"').to_pylist()
    assert steps == [
        {"prompt_tokens": 100, "observation": "read both"},
        {"prompt_tokens": None, "observation": "of a\n\nof b"},
    ]


def test_a_tools_output_and_its_error_are_both_told() -> None:
    answer = {"role": "tool", "tool_call_id": "c", "content": "partial", "error": {"message": "timed out"}}
    run = inspect(
        messages=[user("wait"), assistant("", tool_calls=[{"id": "c", "function": "x"}]), answer, assistant("b")]
    )
    (message,) = run.steps[1].inputs or ()
    assert openai_message(message)["content"] == run.steps[1].observation == "partial\ntimed out"


def test_what_else_a_model_did_is_kept_and_its_answer_not_taught() -> None:
    put_out = [
        {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "applied"},
        {"type": "reasoning", "summary": "hm"},
        {"type": "web_search_call", "id": "w"},
        {"type": "message", "role": "assistant", "content": "done"},
    ]
    record = {"input": "fix it", "output": put_out, "usage": {"input_tokens": 5, "output_tokens": 7}}
    (run,) = read("responses", record, Split.TRAIN, ReadContext())
    assert [(step.action, step.trainable) for step in run.steps] == [("patch *** Begin", True), ("done", False)]
    assert (run.steps[1].observation, run.steps[1].thought, run.tokens) == ("applied", "hm", 12)


def test_every_image_of_a_run_survives_atif(lake: Lake, tmp_path: Path) -> None:
    other = f"data:image/png;base64,{base64.b64encode(PNG + b'!').decode()}"
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in (URL, other)]
    record = {"messages": [user([{"type": "text", "text": "compare"}, *pictures]), assistant("a"), user(pictures[:1])]}
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    import_files(lake, [tmp_path / "log.jsonl"], "chat")
    export(lake, tmp_path / "out", "atif", select_ids(lake, "true"))
    with Lake(tmp_path / "other", create=True) as back:
        import_files(back, [tmp_path / "out"], "atif")
        assert back.sql("select count(*) as n from images").to_pylist() == [{"n": 2}]


def test_openhands_events_are_the_models_own_answers(lake: Lake, tmp_path: Path) -> None:
    """Two calls of one answer are one turn; observations meet their calls; what is no event is quarantined."""
    calls = [
        {"id": name, "type": "function", "function": {"name": "run", "arguments": f'{{"command":"{name}"}}'}}
        for name in ("a", "b")
    ]
    message = {"role": "assistant", "content": "both", "tool_calls": calls}
    response = {"id": "r", "model": "m", "choices": [{"message": message}], "usage": {"prompt_tokens": 9}}

    def asked(number: int, name: str) -> dict[str, Any]:
        metadata = {"function_name": "run", "tool_call_id": name, "model_response": response}
        return {"id": number, "source": "agent", "action": "run", "args": {}, "tool_call_metadata": metadata}

    def came(number: int, name: str, kind: str) -> dict[str, Any]:
        metadata = {"function_name": "run", "tool_call_id": name, "model_response": response}
        seen = {"observation": kind, "content": f"of {name}", "extras": {}, "tool_call_metadata": metadata}
        return {"id": number, "source": "agent", **seen}

    events = [
        {"id": 0, "source": "agent", "action": "system", "args": {"content": "Be brief.", "tools": [{"name": "run"}]}},
        {"id": 1, "source": "user", "action": "message", "args": {"content": "run both", "image_urls": None}},
        {"id": 2, "source": "environment", "observation": "agent_state_changed", "content": "", "extras": {}},
        asked(3, "a"),
        came(4, "a", "run"),
        asked(5, "b"),
        came(6, "b", "error"),
        {"id": 7, "source": "agent", "action": "finish", "args": {"thought": "done", "outputs": {}}, "timestamp": "x"},
    ]
    (tmp_path / "run.json").write_text(json.dumps([*events, {"no": "event"}]))
    done = import_files(lake, [tmp_path / "run.json"], "openhands")
    assert (done.trajectories, done.quarantined) == (1, 1)
    assert done.unread["an event agent_state_changed"] == 1
    rows = lake.sql('select name, arguments, result, error from tool_calls order by "index", position').to_pylist()
    assert [(row["name"], row["result"], row["error"]) for row in rows] == [
        ("run", "of a", None),
        ("run", "", "of b"),
        ("finish", None, None),
    ]
    (run,) = lake.sql("select system, instruction, policy_id, length, tools from trajectories").to_pylist()
    assert (run["system"], run["instruction"], run["length"]) == ("Be brief.", "run both", 2)
    assert json.loads(run["tools"])[0]["function"]["name"] == "run"


@pytest.mark.parametrize("spelling", ["camel", "snake"])
def test_langfuse_generations_of_a_trace_are_one_run(lake: Lake, tmp_path: Path, spelling: str) -> None:
    tool = {"type": "function", "function": {"name": "ls", "arguments": "{}"}, "id": "c"}
    said = {"role": "assistant", "content": None, "tool_calls": [tool]}
    asked = [{"role": "system", "content": "Be brief."}, user("count")]
    first = {
        "traceId": "t",
        "type": "GENERATION",
        "model": "m",
        "input": {"messages": asked, "tools": [{"name": "ls"}]},
    }
    first |= {"output": said, "usageDetails": {"input": 5, "output": 2}, "totalCost": 0.5}
    first |= {"startTime": "2026-01-31T11:00:00Z", "endTime": "2026-01-31T11:00:02Z"}
    result = {"role": "tool", "tool_call_id": "c", "content": "a b"}
    second = {**first, "input": json.dumps([*asked, said, result]), "output": "two", "totalCost": None}
    second |= {"startTime": "2026-01-31T11:00:03Z"}
    span = {"traceId": "t", "type": "SPAN", "name": "agent"}
    rows = [second, span, first]
    if spelling == "snake":
        rows = [{re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in row.items()} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = import_files(lake, [tmp_path / "rows.jsonl"], "langfuse")
    assert (done.trajectories, done.quarantined) == (1, 0)
    assert done.unread["an observation of type SPAN"] == 1
    steps = lake.sql('select action, observation, cost, seconds, prompt_tokens from steps order by "index"').to_pylist()
    assert steps == [
        {"action": "ls {}", "observation": "Be brief.\n\ncount", "cost": 0.5, "seconds": 2.0, "prompt_tokens": 5},
        {"action": "two", "observation": "a b", "cost": None, "seconds": 0.0, "prompt_tokens": 5},
    ]
    (run,) = lake.sql("select cost, tokens, tools from trajectories").to_pylist()
    assert (run["cost"], run["tokens"]) == (None, 14)
    assert json.loads(run["tools"])[0]["function"]["name"] == "ls"


def test_a_downloaded_langfuse_trace_brings_its_scores(lake: Lake, tmp_path: Path) -> None:
    row = {"type": "GENERATION", "input": "count", "output": {"content": "two"}, "startTime": "2026-01-31T11:00:00Z"}
    trace = {"id": "t", "observations": [row], "scores": [{"name": "reward", "value": 0.75}]}
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    import_files(lake, [tmp_path / "trace.json"], "langfuse")
    assert lake.sql("select total_reward as reward, success from trajectories").to_pylist() == [
        {"reward": 0.75, "success": None}
    ]


def test_langsmith_runs_of_a_trace_are_one_run(lake: Lake, tmp_path: Path) -> None:
    def constructor(kind: str, **given: Any) -> dict[str, Any]:
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", kind], "kwargs": given}

    called = constructor("AIMessage", content="", tool_calls=[{"name": "ls", "args": {"path": "a"}, "id": "c"}])
    asked = [constructor("SystemMessage", content="Be brief."), constructor("HumanMessage", content="count")]
    first = {"id": "1", "trace_id": "t", "run_type": "llm", "parent_run_id": "0", "dotted_order": "a.1"}
    first |= {"inputs": {"messages": [asked]}, "outputs": {"generations": [[{"message": called}]]}}
    first |= {"extra": {"invocation_params": {"model": "m", "tools": [{"name": "ls"}]}}, "total_cost": 0.1}
    told = constructor("ToolMessage", content="x y", tool_call_id="c")
    second = {**first, "id": "2", "dotted_order": "a.2", "inputs": {"messages": [[*asked, called, told]]}}
    second |= {"outputs": {"role": "assistant", "content": "two"}}
    root = {"id": "0", "trace_id": "t", "run_type": "chain", "inputs": {}, "outputs": {}, "error": "late"}
    rows = [root, second, first, {"neither": "run"}]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = import_files(lake, [tmp_path / "runs.jsonl"], "langsmith")
    assert (done.trajectories, done.quarantined) == (1, 1)
    (call,) = lake.sql("select name, arguments, result from tool_calls").to_pylist()
    assert call == {"name": "ls", "arguments": '{"path":"a"}', "result": "x y"}
    (run,) = lake.sql("select system, instruction, length, error, cost from trajectories").to_pylist()
    assert run == {"system": "Be brief.", "instruction": "count", "length": 2, "error": "late", "cost": 0.2}


@pytest.mark.parametrize("beside", ["result.json", "verifier/reward.txt", "verifier/reward.json"])
def test_a_harbor_trial_is_its_trajectory_with_the_verifiers_reward(lake: Lake, tmp_path: Path, beside: str) -> None:
    told = {
        "result.json": json.dumps({"verifier_result": {"rewards": {"reward": 1.0}}}),
        "verifier/reward.txt": "1\n",
        "verifier/reward.json": json.dumps({"reward": 1}),
    }
    trial = tmp_path / "job" / "task__a1"
    (trial / "agent").mkdir(parents=True)
    (trial / "verifier").mkdir()
    document = {
        "schema_version": "ATIF-v1.5",
        "session_id": "s",
        "agent": {"name": "a", "version": "1", "model_name": "m"},
        "steps": [
            {"step_id": 1, "source": "user", "message": "count"},
            {"step_id": 2, "source": "agent", "message": "two"},
        ],
    }
    (trial / "agent" / "trajectory.json").write_text(json.dumps(document))
    (trial / beside).write_text(told[beside])
    (tmp_path / "job" / "config.json").write_text("{}")
    done = import_files(lake, [tmp_path / "job"], "harbor")
    assert (done.trajectories, done.quarantined) == (1, 0)
    ids = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    (verdict,) = Integrity().verify(batch_of(lake.trajectories(ids)))
    assert verdict.integrity == 1
    rows = lake.sql("select instruction, success, score, total_reward as reward from trajectories").to_pylist()
    assert rows == [{"instruction": "count", "success": True, "score": 1.0, "reward": 1.0}]


@pytest.mark.parametrize(
    "output",
    [
        "two",
        {"output": "two"},
        {"message": {"role": "assistant", "content": "two"}},
        {"text": "two"},
        [{"role": "assistant", "content": "two"}],
        {"choices": [{"message": {"content": "two"}}]},
        json.dumps({"content": "two"}),
    ],
)
def test_an_answer_is_found_under_whatever_name(output: Any) -> None:
    record = {"observations": [{"type": "GENERATION", "input": "count", "output": output}]}
    (run,) = read("langfuse", record, Split.TRAIN, ReadContext())
    assert [step.action for step in run.steps] == ["two"]


def test_a_call_that_came_to_nothing_is_left_out_and_the_rest_is_read() -> None:
    failed = {"type": "GENERATION", "input": "count", "output": None, "level": "ERROR", "startTime": "1"}
    fine = {"type": "GENERATION", "input": "count", "output": "two", "startTime": "2"}
    source = ReadContext()
    scores = [{"name": "toxicity", "value": 0.9}]
    record = {"observations": [failed, fine], "scores": scores}
    (run,) = read("langfuse", record, Split.TRAIN, source)
    assert (run.length, run.total_reward, source.unread["a call without an answer"]) == (1, None, 1)
    with pytest.raises(RecordError, match="with an answer"):
        read("langfuse", {"observations": [failed]}, Split.TRAIN, ReadContext())


def test_a_call_that_stands_twice_in_a_message_is_one() -> None:
    """LangChain tells Anthropic's calls as parts and as tool_calls; its older form has them among other arguments."""
    parts = [{"type": "tool_use", "id": "c", "name": "ls", "input": {}}]
    twice = {"content": parts, "tool_calls": [{"id": "c", "name": "ls", "args": {}}]}
    older = {
        "content": "",
        "additional_kwargs": {"tool_calls": [{"id": "c", "function": {"name": "ls", "arguments": "{}"}}]},
    }
    for answer in (twice, older):
        record = {"observations": [{"type": "GENERATION", "input": "count", "output": answer}]}
        (run,) = read("langfuse", record, Split.TRAIN, ReadContext())
        assert [step.action for step in run.steps] == ["ls {}"]


def test_a_developers_prompt_is_told_once() -> None:
    run = chat({"role": "developer", "content": "Be brief."}, user("count"), assistant("two"))
    assert [message.role for message in opening_of(run)] == []


def test_what_openhands_does_of_its_own_is_no_action_of_the_agent() -> None:
    events = [
        {"id": 1, "source": "user", "action": "message", "args": {"content": "count"}},
        {"id": 2, "source": "agent", "action": "condensation", "args": {"forgotten_events_start_id": 1}},
        {"id": 3, "source": "agent", "action": "message", "args": {"content": "two"}},
    ]
    source = ReadContext()
    (run,) = read("openhands", {"history": events}, Split.TRAIN, source)
    assert [step.action for step in run.steps] == ["two"]
    assert source.unread["an action condensation"] == 1
