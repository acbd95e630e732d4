"""Students in a model's place: routed by session, exchanged for placeholders, taken back in a second, all on record."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.errors import ConfigError
from flywheel.filters.curate import curate
from flywheel.gateway.agents import agent_tasks
from flywheel.gateway.routing import FILE, Route, read_route, write_route
from flywheel.policies.registry import crown
from flywheel.trajectory import Split
from tests.door_agent import config_of, task_rows
from tests.frameworks import ask_frameworks
from tests.gateways import Recorder, recording
from tests.served import policy_server
from tests.test_agent_world import played

SYSTEM = {"role": "system", "content": "You open doors."}
ASKED = [SYSTEM, {"role": "user", "content": "Look at ann7@example.com, then open the door."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]},
        },
    }
    for name, field in (("look", "at"), ("open", "what"))
]
PLACE = "[REDACTED:e-mail address 1]"
PLACED = [SYSTEM, {"role": "user", "content": f"Look at {PLACE}, then open the door."}]
"""What a client would have to ask that exchanges no placeholders."""
ODD = {"name": "a", "parameters": {"type": "object", "properties": {"x": {"format": "odd"}}}}
CALLS = {"tools": TOOLS, "tool_choice": "required"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Lake, str]]:
    """A student that learned by heart what one does with doors."""
    folder = tmp_path_factory.mktemp("doors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train = {"epochs": {"planner": 1, "executor": 1, "flat": 40}}
        config = config_of(folder, task_rows(16), train=train)
        with Lake.of(config, create=True) as lake:
            lake.append(played(config, agent_tasks(config, Split.TRAIN, 0, 12)), "collect")
            curate(config, lake)
            card = distill(config, lake, "flat", 1)
            crown(lake, card.policy_id, "by hand")
            yield config, lake, card.policy_id


@pytest.fixture(scope="module")
def students(student: tuple[Config, Lake, str]) -> Iterator[str]:
    with policy_server(student[1]) as url:
        yield url


@contextmanager
def routed(folder: Path, upstream: str, students: str, route: Route) -> Iterator[Recorder]:
    write_route(folder, route)
    with recording(folder, upstream, students=students) as recorder:
        yield recorder


def test_the_official_client_gets_calls_of_its_tools(students: str) -> None:
    client = openai.OpenAI(base_url=students, api_key="none", max_retries=0)
    whole = client.chat.completions.create(model="champion", messages=PLACED, **CALLS)  # type: ignore[call-overload]
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    assert call.function.name in ("look", "open")
    assert set(json.loads(call.function.arguments)) <= {"at", "what"}
    assert 0 < whole.model_extra["flywheel"]["confidence"] <= 1
    streamed: dict[str, Any] = {"name": "", "arguments": ""}
    for chunk in client.chat.completions.create(model="champion", messages=PLACED, stream=True, **CALLS):  # type: ignore[call-overload]
        for delta in chunk.choices[0].delta.tool_calls or ():
            streamed = {field: streamed[field] + getattr(delta.function, field) for field in streamed}
    assert streamed == {"name": call.function.name, "arguments": call.function.arguments}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "function", "function": {"name": "open"}}, {"open"}),
        ("none", set()),
    ],
)
def test_a_choice_of_tools_is_kept(students: str, choice: Any, names: set[str]) -> None:
    client = openai.OpenAI(base_url=students, api_key="none", max_retries=0)
    look = {"id": "c", "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": PLACE})}}
    looked = [
        {"role": "assistant", "tool_calls": [look]},
        {"role": "tool", "tool_call_id": "c", "content": '{"seen": "door-1"}'},
    ]
    asked = {"model": "champion", "messages": [*PLACED, *looked], "tools": TOOLS, "tool_choice": choice}
    answer = client.chat.completions.create(**asked).choices[0].message  # type: ignore[call-overload]
    assert {call.function.name for call in answer.tool_calls or ()} == names


def test_sampling_is_what_the_request_asks_for(students: str) -> None:
    client = openai.OpenAI(base_url=students, api_key="none", max_retries=0)
    fields = {"type": "object", "properties": {"door": {"enum": list("abcdefgh")}}, "required": ["door"]}
    function = {"name": "open", "parameters": {**fields, "additionalProperties": False}}
    asked = {"model": "champion", "messages": PLACED, "tools": [{"type": "function", "function": function}]}
    asked |= {"tool_choice": "required"}

    def calls(**options: Any) -> list[str]:
        answer = client.chat.completions.create(**asked, **options)  # type: ignore[call-overload]
        assert [choice.index for choice in answer.choices] == list(range(options.get("n", 1)))
        return [choice.message.tool_calls[0].function.arguments for choice in answer.choices]

    (greedy,) = calls()
    hot = calls(n=8, temperature=50, seed=3)
    assert len(set(hot)) > 1
    assert hot == calls(n=8, temperature=50, seed=3)
    assert calls(n=4, temperature=50, top_p=1e-6, seed=3) == [greedy] * 4 == calls(temperature=0) * 4
    streamed: dict[int, str] = {}
    options = {"n": 8, "temperature": 50, "seed": 3, "stream": True}
    for chunk in client.chat.completions.create(**asked, **options):  # type: ignore[call-overload]
        (choice,) = chunk.choices
        for call in (choice.delta.tool_calls or ())[:1]:
            streamed[choice.index] = streamed.get(choice.index) or call.function.arguments
    assert list(streamed.values()) == hot


SAID = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}


@pytest.mark.parametrize("tools", [[], TOOLS])
def test_an_answer_has_the_form_that_is_asked_for(students: str, tools: list[Any]) -> None:
    client = openai.OpenAI(base_url=students, api_key="none", max_retries=0)
    form = {"type": "json_schema", "json_schema": {"name": "said", "schema": {**SAID, "additionalProperties": False}}}
    asked = {"model": "champion", "messages": ASKED, "tools": tools, "tool_choice": "none", "logprobs": True}
    (choice,) = client.chat.completions.create(**asked, response_format=form).choices  # type: ignore[call-overload]
    assert set(json.loads(choice.message.content)) == {"open"}
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.logprob <= 0 for token in choice.logprobs.content)
    (cut,) = client.chat.completions.create(**asked, response_format=form, stop=[":", "}"]).choices  # type: ignore[call-overload]
    assert cut.finish_reason == "stop"
    assert cut.message.content == choice.message.content.partition(":")[0]
    assert len(cut.logprobs.content) < len(choice.logprobs.content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema belongs to"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"format": "odd"}}}},
            "cannot guide a student",
        ),
        ({"n": 2}, "set a temperature"),
        ({"tool_choice": {"type": "function", "function": {"name": "burn"}}}, "there is no tool 'burn'"),
        ({"tools": [{"type": "function", "function": ODD}]}, "cannot guide a student"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "Done."}]}, "there is nothing to answer"),
        ({"messages": [SYSTEM, {"role": "user", "content": "x" * 10**6}]}, "more than the student can read"),
    ],
)
def test_what_it_cannot_answer_is_refused(students: str, change: dict[str, Any], says: str) -> None:
    client = openai.OpenAI(base_url=students, api_key="none", max_retries=0)
    asked = {"model": "champion", "messages": ASKED, "tools": TOOLS, **change}
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(**asked)  # type: ignore[call-overload]


def test_a_routed_session_is_answered_by_the_student_with_the_real_address(
    student: tuple[Config, Lake, str], upstream: str, students: str, tmp_path: Path
) -> None:
    with routed(tmp_path, upstream, students, Route(student="champion")) as recorder:
        reply = recorder.post({"messages": ASKED, **CALLS, "temperature": 0.7, "stream": False})
        call = reply.json()["choices"][0]["message"]["tool_calls"][0]["function"]
        assert (call["name"], json.loads(call["arguments"])) == ("look", {"at": "ann7@example.com"})
        assert reply.headers["x-flywheel-answered-by"].startswith(student[2])
        (trajectory,) = recorder.trajectories()
    (step,) = trajectory.steps
    assert step.action == 'look {"at": "[REDACTED:e-mail address 1]"}'
    assert trajectory.policy_id.startswith(f"{student[2]}@")
    assert step.cost == 0


def test_a_stream_says_what_the_student_says(upstream: str, students: str, tmp_path: Path) -> None:
    with routed(tmp_path, upstream, students, Route(student="champion")) as recorder:
        client = openai.OpenAI(base_url=recorder.url, api_key="sk-fw-one", max_retries=0)
        stream = client.chat.completions.create(model="m", messages=ASKED, stream=True, **CALLS)  # type: ignore[call-overload]
        deltas = [delta for chunk in stream for delta in chunk.choices[0].delta.tool_calls or ()]
        assert json.loads(deltas[0].function.arguments) == {"at": "ann7@example.com"}
        (trajectory,) = recorder.trajectories()
    assert trajectory.origin_source == "one"


@pytest.mark.parametrize(
    ("route", "students_at", "change", "why"),
    [
        ({}, "http://127.0.0.1:1/v1", {}, "ClientConnectorError"),
        ({"confidence": 1.0}, "", {}, "not sure enough"),
        ({"timeout": 0.001}, "", {}, "no answer in 0.001 s"),
        ({}, "", {"n": 2}, "asks for n"),
        ({}, "", {"logprobs": True}, "asks for logprobs"),
        ({}, "", {"messages": [SYSTEM, {"role": "user", "content": "x" * 10**6}]}, "HTTP status 400"),
        (
            {},
            "",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "holds more than text",
        ),
    ],
)
def test_what_the_student_does_not_answer_the_model_does(
    upstream: str,
    students: str,
    tmp_path: Path,
    route: dict[str, Any],
    students_at: str,
    change: dict[str, Any],
    why: str,
) -> None:
    with routed(tmp_path, upstream, students_at or students, Route(student="champion", **route)) as recorder:
        reply = recorder.post({"messages": ASKED, "tools": TOOLS, **change})
        assert reply.status_code == 200
        assert "x-flywheel-answered-by" not in reply.headers
        (trajectory,) = recorder.trajectories()
    assert trajectory.policy_id == "m@1"
    (said,) = json.loads(trajectory.extra or "{}")["gateway"]["fallbacks"]
    assert said.startswith(why)


def test_a_shadow_is_asked_compared_and_never_shown(upstream: str, students: str, tmp_path: Path) -> None:
    with routed(tmp_path, upstream, students, Route(student="champion", shadow=True)) as recorder:
        reply = recorder.post({"messages": ASKED, **CALLS, "stream": True, "pause": 0.2})
        assert "flywheel" not in reply.text
        (trajectory,) = recorder.trajectories()
    assert json.loads(trajectory.extra or "{}")["gateway"]["shadows"] == {"differs": 1}


def test_a_share_of_the_sessions_goes_to_the_student_and_one_command_takes_it_back(
    upstream: str, students: str, tmp_path: Path
) -> None:
    with routed(tmp_path, upstream, students, Route(student="champion", share=0.5)) as recorder:
        answered = [
            "x-flywheel-answered-by"
            in recorder.post({"messages": ASKED, **CALLS}, headers={"x-flywheel-session": f"s{number}"}).headers
            for number in range(20)
        ]
        assert answered == [Route(student="champion", share=0.5).takes(f"s{number}") for number in range(20)]
        assert 0 < sum(answered) < 20
        config = tmp_path / "agent.toml"
        config.write_text(f'name = "agent"\ndata_dir = "{tmp_path}"\n[environment]\nname = "gateway/agent"\n')
        told = CliRunner().invoke(app, ["route", str(config), "--to", "upstream", "--json"])
        assert json.loads(told.output)["student"] == ""
        deadline = time.monotonic() + 5
        while recorder.client.get(f"{recorder.url[:-3]}/health").json()["route"]["student"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        again = recorder.post({"messages": ASKED, **CALLS}, headers={"x-flywheel-session": "s0"})
        assert "x-flywheel-answered-by" not in again.headers


def test_a_route_that_cannot_be_read_changes_nothing(upstream: str, tmp_path: Path) -> None:
    with routed(tmp_path, upstream, "http://127.0.0.1:1/v1", Route()) as recorder:
        (tmp_path / FILE).write_text('{"share": 2}')
        with pytest.raises(ConfigError, match="share"):
            read_route(tmp_path)
        deadline = time.monotonic() + 5
        while (health := recorder.client.get(f"{recorder.url[:-3]}/health").json())["status"] == "ok":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "share" in health["problem"]
        assert recorder.post({"messages": ASKED}).status_code == 200


@pytest.mark.slow
def test_two_frameworks_are_answered_by_a_student_as_they_are(upstream: str, students: str, tmp_path: Path) -> None:
    with routed(tmp_path, upstream, students, Route(student="champion")) as recorder:
        words = "Look at ann7@example.com, then open the door."
        said = ask_frameworks(tmp_path, recorder.url, "You open doors.", words, '{"seen": "door-7"}')
        trajectories = recorder.trajectories()
    assert said[0] == "It is open."
    assert len(said) == 2 and said[1], "another framework words its requests otherwise than what was learned by heart"
    assert [trajectory.task_name for trajectory in trajectories] == ["openai-agents", "pydantic-ai"]
    assert [step.action for step in trajectories[0].steps[:2]] == [
        'look {"at": "[REDACTED:e-mail address 1]"}',
        'open {"what": "door"}',
    ]
    for trajectory in trajectories:
        assert all("@" in step.policy_id for step in trajectory.steps), "the student answered every call"
