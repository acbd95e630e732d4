"""The gateway: what an agent and its model say to each other is recorded, and neither notices."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from typer.testing import CliRunner

import flywheel
from flywheel.cli.main import app
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import PrerequisiteError, RecordError
from flywheel.filters.curate import curate
from flywheel.gateway.placeholders import SEAL, originals
from flywheel.messages import text_of_inputs
from flywheel.trajectory import TrajectoryOrigin
from tests.gateways import TOOLS, Recorder, config_of, recording
from tests.servers import chat_server

HELLO = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "hello"}]


def client_of(recorder: Recorder, session: str) -> OpenAI:
    return OpenAI(base_url=recorder.url, api_key=f"sk-fw-{session}", max_retries=0)


def run(client: OpenAI, words: str, *, stream: bool) -> list[dict[str, Any]]:
    """An agent of one tool, by the official client; its conversation."""
    messages: list[dict[str, Any]] = [HELLO[0], {"role": "user", "content": words}]
    while True:
        given: dict[str, Any] = {"model": "m", "messages": messages, "tools": TOOLS}
        if stream:
            with client.chat.completions.stream(**given) as events:
                for _ in events:
                    pass
                answer = events.get_final_completion().choices[0].message
        else:
            answer = client.chat.completions.create(**given).choices[0].message
        messages.append(answer.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        if not answer.tool_calls:
            return messages
        call = answer.tool_calls[0]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"seen: {call.function.arguments}"})


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_clients_run_is_recorded_message_by_message(recorder: Recorder, stream: bool) -> None:
    said = run(client_of(recorder, "a.run"), "what is there?", stream=stream)
    assert recorder.report("a.run", success=True, who="test").status_code == 200
    (trajectory,) = recorder.trajectories()
    assert (trajectory.task_name, trajectory.origin, trajectory.length) == ("a.run", TrajectoryOrigin.RECORDED, 2)
    assert trajectory.system == "You are terse."
    assert trajectory.tools is not None and json.loads(trajectory.tools) == TOOLS
    call = trajectory.steps[0].output
    assert call is not None and call.tool_calls[0].id == said[2]["tool_calls"][0]["id"]
    assert call.tool_calls[0].arguments == said[2]["tool_calls"][0]["function"]["arguments"]
    inputs, answer = trajectory.steps[1].inputs, trajectory.steps[1].output
    assert inputs is not None and text_of_inputs(inputs) == said[3]["content"]
    assert answer is not None and answer.content.strip() == said[4]["content"].strip()
    assert trajectory.tokens == 28
    success = recorder.lakes[0].sql("select success, reported_at is not null as told from trajectories").to_pylist()
    assert success == [{"success": True, "told": True}]


def test_what_the_gateway_does_not_know_passes_untouched(recorder: Recorder) -> None:
    body = {"messages": HELLO, "n": 2, "logprobs": True, "never_heard_of": {"x": 1}}
    reply = recorder.post(body)
    direct = httpx.post(f"{recorder.config.gateway.upstream}/chat/completions", json={"model": "m", **body})
    assert reply.json() == direct.json()
    streamed = recorder.post({"messages": HELLO, "stream": True})
    direct = httpx.post(
        f"{recorder.config.gateway.upstream}/chat/completions", json={"model": "m", "messages": HELLO, "stream": True}
    )
    assert streamed.content == direct.content
    assert (streamed.headers["x-request-id"], streamed.headers["content-type"]) == ("r1", "text/event-stream")
    assert httpx.get(f"{recorder.url}/models").json() == httpx.get(f"{recorder.config.gateway.upstream}/models").json()


def test_the_gateway_alone_holds_the_key(upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_UPSTREAM_KEY", "sk-upstream")
    with recording(tmp_path, upstream) as recorder:
        headers = {"authorization": "Bearer sk-fw-mine"}
        assert httpx.get(f"{recorder.url}/models", headers=headers).json()["key"] == "Bearer sk-upstream"
        recorder.post({"messages": HELLO}, headers=headers)
        recorder.lake()
    assert not any(b"sk-upstream" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_all_answers_and_logprobs_are_kept(recorder: Recorder) -> None:
    reply = recorder.post({"messages": HELLO, "n": 3, "logprobs": True}).json()
    taken = reply["choices"][1]["message"]
    recorder.post({"messages": [*HELLO, taken, {"role": "user", "content": "go on"}]})
    (trajectory,) = recorder.trajectories()
    assert trajectory.steps[0].action == "1"
    assert trajectory.extra is not None
    kept = json.loads(trajectory.extra)["gateway"]["all_answers"]
    assert [choice["message"]["content"] for choice in next(iter(kept.values()))["choices"]] == ["0", "1", "2"]
    recorder.post({"messages": [{"role": "user", "content": "likely?"}], "logprobs": True})
    assert recorder.trajectories()[-1].steps[0].logprobs == (-0.5, -0.25)


def test_the_responses_api_by_history_and_by_id(recorder: Recorder) -> None:
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    first = recorder.post({"input": "hi", "instructions": "Be brief.", "tools": tools}, "responses").json()
    result = {"type": "function_call_output", "call_id": "call_1", "output": "a lamp"}
    by_id = {"input": [result], "previous_response_id": first["id"], "stream": True}
    second = recorder.post(by_id, "responses")
    assert b"response.completed" in second.content
    history = [{"role": "user", "content": "hello"}, *first["output"], result]
    recorder.post({"input": "hello", "tools": tools}, "responses")
    recorder.post({"input": history}, "responses")
    by_id_run, by_history = recorder.trajectories()
    assert [step.action for step in by_id_run.steps] == ["look {}", f"I hear {json.dumps(result)[:80]}"]
    assert (by_id_run.system, by_id_run.tokens) == ("Be brief.", 14)
    assert [step.action for step in by_history.steps] == [step.action for step in by_id_run.steps]


def test_anthropics_dialect(recorder: Recorder) -> None:
    body = {"system": [{"type": "text", "text": "Be kind."}], "messages": [{"role": "user", "content": "hi"}]}
    recorder.post({**body, "stream": True, "max_tokens": 9}, "messages", headers={"x-api-key": "sk-fw-claude"})
    (trajectory,) = recorder.trajectories()
    output = trajectory.steps[0].output
    assert output is not None and output.content == "I hear 1 messages"
    assert [(call.name, json.loads(call.arguments)) for call in output.tool_calls] == [("look", {"at": "x"})]
    assert (trajectory.task_name, trajectory.system, trajectory.tokens) == ("claude", "Be kind.", 13)


@pytest.mark.parametrize(
    ("model", "status"), [("429", 429), ("500", 500), ("html", 200), ("reset", 502), ("silent", 504)]
)
def test_the_client_gets_what_the_server_said(recorder: Recorder, model: str, status: int) -> None:
    reply = recorder.post({"model": model, "messages": HELLO})
    assert reply.status_code == status
    if model == "429":
        assert reply.headers["retry-after"] == "1"
    if status in (502, 504):
        assert "the model's server" in reply.json()["error"]["message"]
    assert recorder.trajectories() == []
    assert 'result="failed"} 1.0' in httpx.get(recorder.url.replace("/v1", "/metrics")).text


@pytest.mark.parametrize(
    "reply", [b"5", b'{"choices": 5}', b'{"choices": [{"message": {"content": {"a": 1}}}]}', b"[]"]
)
def test_whatever_a_server_sends_the_client_has_it(tmp_path: Path, reply: bytes) -> None:
    with chat_server(lambda request, key: (200, reply)) as url, recording(tmp_path, url) as recorder:
        assert recorder.post({"messages": HELLO}).content == reply
        assert recorder.post({"messages": [5, {"role": 3, "content": 1.5}, {"tool_calls": [1]}]}).content == reply
        form = {"content-type": "multipart/form-data; boundary=x"}
        assert httpx.post(f"{recorder.url}/files", content=b'{"model": "x"}', headers=form).status_code == 200
        page = {**form, "origin": "https://elsewhere.example"}
        assert httpx.post(f"{recorder.url}/files", content=b'{"model": "x"}', headers=page).status_code == 403
        assert recorder.post({"messages": HELLO}, headers={"host": "elsewhere.example:80"}).status_code == 403
        recorder.trajectories()


def test_a_stream_that_breaks_off_breaks_off_here_and_is_no_answer(recorder: Recorder) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        recorder.post({"model": "cut", "messages": HELLO, "stream": True})
    recorder.post({"messages": HELLO})
    (trajectory,) = [trajectory for trajectory in recorder.trajectories() if trajectory.length]
    assert trajectory.length == 1


def test_malformed_events_are_handed_on_and_left_out(recorder: Recorder) -> None:
    reply = recorder.post({"model": "malformed", "messages": HELLO, "stream": True})
    assert b"{not json" in reply.content and reply.content.endswith(b"data: [DONE]\n\n")
    (trajectory,) = recorder.trajectories()
    assert trajectory.steps[0].action.strip() == "I hear hello after 2 messages"


def test_a_client_that_leaves_has_no_answer(recorder: Recorder) -> None:
    body = {"model": "m", "messages": HELLO, "stream": True, "pause": 0.05}
    with httpx.stream("POST", f"{recorder.url}/chat/completions", json=body) as reply:
        next(reply.iter_raw())
    deadline = time.monotonic() + 5
    while b'"failed"} 1.0' not in httpx.get(recorder.url.replace("/v1", "/metrics")).content:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert recorder.trajectories() == []


def test_a_full_spool_answers_and_says_so(upstream: str, tmp_path: Path) -> None:
    with recording(tmp_path, upstream, spool_mib=1) as recorder:
        words = [{"role": "user", "content": random.Random(0).randbytes(1 << 20).hex()}]
        statuses = {recorder.post({"messages": words}).status_code for _ in range(3)}
        assert statuses == {200}
        metrics = httpx.get(recorder.url.replace("/v1", "/metrics")).text
        assert 'result="unrecorded"' in metrics
        assert "full" in httpx.get(recorder.url.replace("/v1", "/health")).json()["problem"]
        before = len(recorder.trajectories())
        recorder.post({"messages": HELLO})
        assert len(recorder.trajectories()) == before + 1


def test_outcomes_are_facts_and_the_newest_is_in_force(recorder: Recorder) -> None:
    assert recorder.report("nobody", success=True).status_code == 404
    assert recorder.report("x" * 65, success=True).status_code == 400
    recorder.post({"messages": HELLO}, headers={"x-flywheel-session": "late"})
    assert recorder.report("late", score=2.0).status_code == 400
    assert recorder.report("late").status_code == 400
    lake = recorder.lake()
    assert curate(recorder.config, lake) == {}, "unknown is no failure"
    assert recorder.report("late", success=False, who="user", comment="too slow").status_code == 200
    assert curate(recorder.config, recorder.lake()) == {"continual": 1}
    assert recorder.report("late", success=True, who="support").status_code == 200
    lake = recorder.lake()
    assert curate(recorder.config, lake) == {"supervised": 1}
    assert curate(recorder.config, lake) == {"supervised": 1}
    told = lake.sql("select success, comment, who from outcomes order by created_at").to_pylist()
    assert [row["success"] for row in told] == [False, True]


def test_outcomes_come_from_a_file(recorder: Recorder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorder.post({"messages": HELLO}, headers={"x-flywheel-session": name})
    recorder.lake()
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("session,success,score,comment\na,yes,,fine\nb,,0.25,\n")
    bad.write_text("session,success\na,no\nc,yes\n")

    def report(path: Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["report", str(path), "--data-dir", str(tmp_path), "--json"])
        return done.exit_code, str(done.exception or done.output)

    code, said = report(bad)
    assert code != 0 and "bad.csv:3" in said and "'c'" in said
    assert report(good)[0] == 0
    with Lake.open(tmp_path) as lake:
        told = lake.sql("select task_name, success, score from trajectories order by task_name").to_pylist()
    assert told == [
        {"task_name": "a", "success": True, "score": None},
        {"task_name": "b", "success": False, "score": 0.25},
    ]


def test_an_outcome_is_reported_from_python(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.post({"messages": HELLO}, headers={"x-flywheel-session": "mine"})
    monkeypatch.setenv("FLYWHEEL_GATEWAY_URL", recorder.url)
    assert flywheel.report("mine", score=0.5, comment="half", who="me")
    with pytest.raises(RecordError, match="no session 'other'"):
        flywheel.report("other", success=True)
    with pytest.raises(PrerequisiteError, match="no gateway answers"):
        flywheel.report("mine", success=True, gateway="http://127.0.0.1:9/v1")
    (trajectory,) = recorder.trajectories()
    told = recorder.lakes[0].sql("select trajectory_id, score, comment, who from outcomes").to_pylist()
    assert told == [{"trajectory_id": trajectory.trajectory_id, "score": 0.5, "comment": "half", "who": "me"}]


def test_private_data_has_the_same_placeholder_in_a_session(
    upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.fernet import Fernet

    key = Fernet.generate_key().decode()
    monkeypatch.setenv(SEAL, key)
    with recording(tmp_path, upstream, private=[r"CUST-\d{4}"]) as recorder:
        for session, first in (("one", "ann@shop.com"), ("two", "bob@shop.com")):
            said = f"I am {first} or cc@shop.com, customer CUST-1234; reach\n{first.upper()}"
            run(client_of(recorder, session), said, stream=False)
        recorder.post({"messages": [{"role": "user", "content": "the weather?"}]})
        one, two, plain = recorder.trajectories()
    address, other, customer = (f"[REDACTED:{name}]" for name in ("e-mail address 1", "e-mail address 2", "private 1"))
    masked = f"I am {address} or {other}, customer {customer}; reach\n{address}"
    for trajectory in (one, two):
        call = trajectory.steps[0].output
        assert trajectory.instruction == masked and call is not None
        assert json.loads(call.tool_calls[0].arguments) == {"at": masked}
        assert address in trajectory.steps[1].observation
    assert originals(one, key) == {address: "ann@shop.com", other: "cc@shop.com", customer: "CUST-1234"}
    assert originals(plain, key) == {}
    with pytest.raises(PrerequisiteError, match="another key"):
        originals(one, Fernet.generate_key().decode())


def test_requests_of_any_size_and_letters(recorder: Recorder) -> None:
    image = "data:image/png;base64," + "A" * (20 << 20)
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": image}}]
    odd = "nul \x00, half a pair \ud800, end"
    assert recorder.post({"messages": [{"role": "user", "content": parts}]}).status_code == 200
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": odd}]}).encode()
    headers = {"content-type": "application/json", "x-flywheel-session": "odd"}
    assert httpx.post(f"{recorder.url}/chat/completions", content=body, headers=headers).status_code == 200
    assert recorder.post({"messages": [{"role": "user", "content": "x" * 1_000_000}]}).status_code == 200
    lengths = [len(trajectory.instruction) for trajectory in recorder.trajectories()]
    quarantined = recorder.lakes[-1].sql("select source, reason from quarantined").to_pylist()
    assert 1_000_000 in lengths and len(lengths) + len(quarantined) == 3


def test_a_changed_tool_is_the_newest_one_and_said(recorder: Recorder) -> None:
    other = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "required": ["at"]}}}]
    first = recorder.post({"messages": HELLO, "tools": TOOLS}).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "a lamp"}
    recorder.post({"messages": [*HELLO, first, result], "tools": other})
    (trajectory,) = recorder.trajectories()
    assert trajectory.tools is not None and json.loads(trajectory.tools) == other
    assert trajectory.extra is not None and json.loads(trajectory.extra)["gateway"]["tools_changed_at"] == [1]


def test_an_open_address_needs_a_key(upstream: str, tmp_path: Path) -> None:
    from flywheel.gateway.server import serve

    with pytest.raises(PrerequisiteError, match="FLYWHEEL_GATEWAY_KEY"):
        serve(config_of(tmp_path, upstream), host="0.0.0.0")
    with recording(tmp_path, upstream, key="do:or") as recorder:
        assert recorder.post({"messages": HELLO}).status_code == 401
        assert recorder.report("x", success=True).status_code == 401
        assert recorder.post({"messages": HELLO}, headers={"authorization": "Bearer do:ors"}).status_code == 401
        for token in ("do:or", "do:or:mine"):
            headers = {"authorization": f"Bearer {token}"}
            assert recorder.post({"messages": HELLO}, headers=headers).status_code == 200
        names = {trajectory.task_name for trajectory in recorder.trajectories()}
    assert "mine" in names and len(names) == 2


def test_the_commands_say_what_they_would_do(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('name = "a"\ndata_dir = "data"\n[environment]\nname = "gateway/agent"\n')
    done = CliRunner().invoke(app, ["gateway", str(config), "--dry-run", "--json"])
    assert json.loads(done.output)["upstream"] == "http://127.0.0.1:8000/v1"
    done = CliRunner().invoke(app, ["gateway", str(config), "--set", "gateway.upstream=ftp://x"])
    assert done.exit_code != 0 and "http" in str(done.exception)
    done = CliRunner().invoke(app, ["gateway", str(config), "--set", "gateway.app=other"])
    assert done.exit_code != 0 and "gateway/other; set gateway.app" in str(done.exception)
