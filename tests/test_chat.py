"""Chat policies: models behind OpenAI-compatible servers, which answer oddly, refuse, die and come back.

The server is real and speaks OpenAI's protocol; the model behind it, the one thing here that would cost money, is a
rule that reads the prompt. `tests/test_instruct.py` has a real model.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.chat import SYSTEM, ChatPolicy, Dialogue
from flywheel.agents.contexts.chat_format import (
    ParsedAnswer,
    parse_answer,
    parse_observation,
    render_answer,
    render_observation,
)
from flywheel.config.agents import ChatConfig
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import Observation
from flywheel.errors import ConfigError, FlywheelError
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.rollouts.play import play
from flywheel.trajectory import StopReason, Trajectory
from tests import strategies
from tests.corridor import LENGTH, CorridorWorld, task_of
from tests.servers import chat_server, free_port

ORIGIN = Origin(1, "collect", "test")
ROOT = Path(__file__).parents[1]


@dataclass
class Model:
    """Goes right, in whatever words the test wants."""

    reply: Callable[[dict[str, Any], int], Any] = lambda request, number: "Thought: on we go\nAction: right"
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: dict[str, Any], key: str) -> Any:
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            number = len(self.requests)
        told = self.reply(request, number)
        return told if isinstance(told, tuple) else (200, told)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def url(model: Model) -> Iterator[str]:
    with chat_server(model.answer) as base_url:
        yield base_url


def walk(settings: ChatConfig, seeds: int = 1, budget: Budget | None = None) -> list[Trajectory]:
    jobs = [Job(task_of(seed)) for seed in range(seeds)]
    workers = in_process(CorridorWorld(), seeds)
    return list(Rollout(ChatPolicy(settings), jobs, workers, budget=budget or Budget(20), origin=ORIGIN))


def test_a_model_plays_and_its_words_are_kept(model: Model, url: str) -> None:
    one = walk(ChatConfig(base_url=url, model="m", price_prompt=2.0, price_completion=10.0))[0]
    assert one.success and one.length == LENGTH
    assert {step.thought for step in one.steps} == {"on we go"}
    assert all((step.prompt_tokens, step.completion_tokens) == (100, 7) for step in one.steps)
    assert one.steps[0].cost == pytest.approx((100 * 2 + 7 * 10) / 1e6)
    assert model.requests[0]["messages"][0]["content"].startswith(SYSTEM[:40])
    assert "Task: Walk to the door." in model.requests[0]["messages"][1]["content"]
    assert "- right" in model.requests[0]["messages"][1]["content"]


def test_a_cost_without_prices_is_unknown_and_no_budget_holds_it(model: Model, url: str) -> None:
    episode = walk(ChatConfig(base_url=url, model="m"))[0]
    assert (episode.cost, episode.steps[0].cost, episode.tokens) == (None, None, 107 * LENGTH)
    (stopped,) = walk(ChatConfig(base_url=url, model="m"), budget=Budget(20, cost=1.0))
    assert (stopped.stop_reason, stopped.length) == (StopReason.COST_LIMIT, 1)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    model: Model, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_CHAT_KEY", "sk-secret")
    policy = ChatPolicy(ChatConfig(base_url=url, model="m"))
    walk(ChatConfig(base_url=url, model="m"))
    assert set(model.keys) == {"Bearer sk-secret"}
    assert "secret" not in policy.policy_id


def test_tool_calls_choose_among_the_valid_actions(model: Model, url: str) -> None:
    def call(request: dict[str, Any], number: int) -> Any:
        tool = request["tools"][0]["function"]
        assert tool["parameters"]["properties"]["action"]["enum"] == ["left", "right"]
        arguments = json.dumps({"action": "right", "subgoal": "the door" if number == 1 else ""})
        calls = [{"id": "1", "type": "function", "function": {"name": tool["name"], "arguments": arguments}}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    model.reply = call
    one = walk(ChatConfig(base_url=url, model="m", tools=True))[0]
    assert one.success
    assert [step.subgoal for step in one.steps[:2]] == ["the door", ""]
    assert one.steps[0].new_subgoal


def test_likeliest_tokens_are_stored_where_the_server_tells_them(model: Model, url: str, lake: Lake) -> None:
    tops = [{"token": "right", "logprob": -0.1, "bytes": None}, {"token": "left", "logprob": -2.5, "bytes": None}]
    told = {"content": [{"token": "right", "logprob": -0.1, "bytes": None, "top_logprobs": tops}]}
    model.reply = lambda request, number: {"role": "assistant", "content": "Action: right", "logprobs": told}
    lake.append(walk(ChatConfig(base_url=url, model="m", top_logprobs=2)), "chat")
    assert model.requests[0]["top_logprobs"] == 2
    step = lake.sql("select logprobs, top_tokens, top_logprobs from steps limit 1").to_pylist()[0]
    assert step["top_tokens"] == [["right", "left"]]
    assert step["top_logprobs"][0] == pytest.approx([-0.1, -2.5])
    assert step["logprobs"] == pytest.approx([-0.1])


def test_an_unreadable_answer_is_asked_for_again_with_the_reason(model: Model, url: str) -> None:
    model.reply = lambda request, number: "What a nice corridor!" if number == 1 else "**Action:** `Right`."
    one = walk(ChatConfig(base_url=url, model="m"))[0]
    assert one.success
    assert one.steps[0].action == "right"
    assert one.steps[0].prompt_tokens == 200
    assert "No action could be read" in model.requests[1]["messages"][-1]["content"]
    assert all("What a nice" not in str(request["messages"]) for request in model.requests[2:])


def test_answers_that_stay_unreadable_end_the_episode_and_the_reason_is_kept(model: Model, url: str) -> None:
    model.reply = lambda request, number: "I would rather not."
    one = walk(ChatConfig(base_url=url, model="m", corrections=1))[0]
    assert one.stop_reason is StopReason.MALFORMED
    assert one.error == "no action in: I would rather not."
    assert one.tokens == 2 * 107, "answers that led to no step are paid for too"
    assert len(model.requests) == 2


def test_a_model_may_give_up(model: Model, url: str) -> None:
    model.reply = lambda request, number: "Action: right" if number < 3 else "Action: stop"
    one = walk(ChatConfig(base_url=url, model="m"))[0]
    assert (one.stop_reason, one.length, one.success) == (StopReason.GAVE_UP, 2, False)


def test_rate_limits_are_waited_for(model: Model, url: str) -> None:
    model.reply = lambda request, number: (429, "slow down") if number % 3 == 1 else "Action: right"
    played = walk(ChatConfig(base_url=url, model="m"), seeds=3)
    assert all(trajectory.success for trajectory in played)
    assert len(model.requests) > 3 * LENGTH


def test_requests_keep_a_pace(model: Model, url: str) -> None:
    began = time.monotonic()
    assert walk(ChatConfig(base_url=url, model="m", per_minute=600))[0].success
    assert time.monotonic() - began >= (LENGTH - 1) * 0.1


def test_a_refusal_is_the_users_to_mend(model: Model, url: str) -> None:
    model.reply = lambda request, number: (401, "who are you?")
    with pytest.raises(ConfigError, match="refuses: HTTP 401; check base_url, model and FLYWHEEL_CHAT_KEY"):
        walk(ChatConfig(base_url=url, model="m"))
    with pytest.raises(ConfigError, match="the chat policy needs model"):
        ChatPolicy(ChatConfig(base_url=url))


def test_a_request_that_is_refused_ends_its_episode_alone(model: Model, url: str) -> None:
    def answer(request: dict[str, Any], number: int) -> Any:
        return (400, "too long") if request["seed"] == refused else "Action: right"

    jobs = [Job(task_of(seed)) for seed in range(4)]
    policy = ChatPolicy(ChatConfig(base_url=url, model="m"))
    policy.begin(0, task_of(2), 0)
    refused = policy._seeds[0]
    model.reply = answer
    played = {
        trajectory.seed: trajectory
        for trajectory in Rollout(policy, jobs, in_process(CorridorWorld(), 4), budget=Budget(20), origin=ORIGIN)
    }
    assert "refuses a request: HTTP 400" in played[2].error
    assert [trajectory.success for _, trajectory in sorted(played.items())] == [True, True, False, True]


def test_addresses_hold_no_passwords() -> None:
    with pytest.raises(ValueError, match="must not hold a password"):
        ChatConfig(base_url="http://me:secret@127.0.0.1/v1")


def test_a_server_that_fails_for_too_long_breaks_episodes_and_counts_against_nobody(
    model: Model, url: str, lake: Lake
) -> None:
    model.reply = lambda request, number: (500, "oh no")
    settings = load(ROOT / "configs" / "smoke.toml", [f"data_dir={lake.root}", "environment.parallel=2"])
    policy = ChatPolicy(ChatConfig(base_url=url, model="m", retries=0))
    ids = play(settings, lake, CorridorWorld(), policy, [Job(task_of(1))], ORIGIN)
    rows = lake.sql("select stop_reason, error from trajectories order by attempt").to_pylist()
    assert len(rows) == len(ids) == 3
    assert {row["stop_reason"] for row in rows} == {"infrastructure"}
    assert "HTTP 500" in rows[0]["error"]


@pytest.mark.parametrize("body", [b"<html>busy</html>", b"{}", b'{"choices": [{}]}', b"\xff\xfe"])
def test_a_server_that_does_not_speak_the_protocol(body: bytes) -> None:
    with chat_server(lambda request, key: (200, body)) as url:
        one = walk(ChatConfig(base_url=url, model="m", retries=0, corrections=0))[0]
    assert one.stop_reason in (StopReason.INFRASTRUCTURE, StopReason.MALFORMED)
    assert one.error


def _message(**more: Any) -> bytes:
    """A whole answer with such a message."""
    choice = {"index": 0, "message": {"role": "assistant", **more}, "finish_reason": "stop", "logprobs": None}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": None}
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("message", "thought"),
    [
        ({"content": [{"type": "text", "text": "Action: right"}]}, ""),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "Action: right"},
                ]
            },
            "hm",
        ),
        ({"content": "Action: right", "reasoning": "hm"}, "hm"),
        ({"content": "Action: right", "reasoning_content": "hm", "tool_calls": None, "function_call": None}, "hm"),
        ({"content": "<think>\nhm\n</think>\nAction: right"}, "hm"),
        ({"content": "Thought: so\nAction: right", "reasoning": "hm"}, "hm\nso"),
        ({"content": "Action: right", "tool_calls": []}, ""),
    ],
)
def test_answers_come_in_many_shapes(message: dict[str, Any], thought: str) -> None:
    with chat_server(lambda request, key: (200, _message(**message))) as url:
        one = walk(ChatConfig(base_url=url, model="m", retries=0, corrections=0))[0]
    assert one.success
    assert {step.thought for step in one.steps} == {thought}


@pytest.mark.parametrize("arguments", ['{"action": "right"}', {"action": "right"}])
def test_arguments_are_read_as_text_and_as_an_object(arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "act", "arguments": arguments}}
    with chat_server(lambda request, key: (200, _message(content=None, tool_calls=[call]))) as url:
        assert walk(ChatConfig(base_url=url, model="m", retries=0, tools=True))[0].success


@pytest.mark.parametrize(
    "body", [b'{"error": {"message": "overloaded", "code": 502}}', b'{"choices": [], "model": "m", "usage": null}']
)
def test_an_error_with_status_200_is_sent_again_and_counts_against_nobody(model: Model, body: bytes) -> None:
    good = _message(content="Action: right")
    model.reply = lambda request, number: (200, body if number <= 2 else good)
    with chat_server(model.answer) as url:
        assert walk(ChatConfig(base_url=url, model="m", retries=3))[0].success
    model.reply = lambda request, number: (200, body)
    with chat_server(model.answer) as url:
        one = walk(ChatConfig(base_url=url, model="m", retries=1))[0]
    assert one.stop_reason is StopReason.INFRASTRUCTURE
    assert "answers with an error" in one.error or "without choices" in one.error


def test_options_that_a_server_refuses_by_name_are_left_out(model: Model, url: str) -> None:
    def reply(request: dict[str, Any], number: int) -> Any:
        if "max_tokens" in request or request.get("temperature", 1) != 1:
            told = {"message": "Unsupported parameter: 'max_tokens', 'temperature'", "code": "unsupported_parameter"}
            return 400, json.dumps({"error": told}).encode()
        return "Action: right"

    model.reply = reply
    assert all(trajectory.success for trajectory in walk(ChatConfig(base_url=url, model="m", retries=0), seeds=6))
    assert len([request for request in model.requests if "max_tokens" in request]) <= 6
    assert model.requests[-1]["max_completion_tokens"] == 256
    explicit = ChatConfig(
        base_url=url, model="m", retries=0, token_limit="max_completion_tokens", temperature="default"
    )
    model.requests.clear()
    assert walk(explicit)[0].success
    assert not any("max_tokens" in request or "temperature" in request for request in model.requests)


def test_a_prompt_that_is_too_long_changes_no_option(model: Model, url: str) -> None:
    told = {"message": "This model's maximum context length is 10 tokens; reduce max_tokens or the temperature of it"}
    model.reply = lambda request, number: (
        (400, json.dumps({"error": told}).encode()) if number == 1 else "Action: right"
    )
    settings = ChatConfig(base_url=url, model="m", retries=0)
    assert walk(settings)[0].stop_reason is StopReason.INFRASTRUCTURE
    assert walk(settings)[0].success
    assert all("max_tokens" in request and "temperature" in request for request in model.requests)


def test_a_server_that_dies_in_the_middle_and_comes_back_loses_nothing(model: Model) -> None:
    port = free_port()
    model.reply = lambda request, number: (time.sleep(0.02), "Action: right")[1]
    played: list[Trajectory] = []

    def collect() -> None:
        settings = ChatConfig(base_url=f"http://127.0.0.1:{port}/v1", model="m", retries=20, timeout=5)
        played.extend(walk(settings, seeds=6))

    with chat_server(model.answer, port):
        thread = threading.Thread(target=collect)
        thread.start()
        while len(model.requests) < 8:
            time.sleep(0.01)
    before = len(model.requests)
    time.sleep(0.5)
    with chat_server(model.answer, port):
        thread.join(60)
    assert len(model.requests) > before
    assert len(played) == 6 and all(trajectory.success for trajectory in played)


def test_what_a_model_is_shown_does_not_grow_with_the_episode() -> None:
    dialogue = Dialogue("Walk.", window=6)
    lengths = []
    for step in range(500):
        seen = Observation(
            f"room {step % 7}", f"You walk {step}.", location=str(step % 7), valid_actions=("on", "back")
        )
        text = render_observation(seen)
        lengths.append(len(json.dumps(dialogue.messages(None, text))))
        dialogue.add(seen, text, ParsedAnswer("on"))
    assert max(lengths[400:]) <= 1.2 * max(lengths[20:40])


# -- words -------------------------------------------------------------------------------------------------------------

observations = st.builds(
    Observation,
    text=strategies.text,
    feedback=strategies.text,
    document=strategies.text,
    location=strategies.text,
    state_key=strategies.text,
    valid_actions=st.none() | st.lists(strategies.text, max_size=4).map(tuple),
    finish=st.none() | strategies.text.filter(bool),
)


@given(observations, strategies.text)
def test_an_observation_is_read_as_it_was_worded(observation: Observation, audit: str) -> None:
    assert parse_observation(render_observation(observation, audit=audit, whole=True)) == (observation, audit)


@given(st.text("[]\\\n- abview", max_size=30))
def test_words_that_look_like_sections_are_only_words(text: str) -> None:
    seen = Observation(text, feedback=text, document=text, valid_actions=(text,))
    assert parse_observation(render_observation(seen, whole=True)) == (seen, "")


@given(strategies.text)
def test_other_words_are_a_view(text: str) -> None:
    if not re.match(r"\[[a-z]+\]", text):
        assert parse_observation(text) == (Observation(text), "")


@given(strategies.text, strategies.text, strategies.text)
def test_an_answer_is_understood_as_it_was_spoken(action: str, subgoal: str, thought: str) -> None:
    answer = ParsedAnswer(action.strip() or "go", subgoal.strip(), thought.strip())
    assert parse_answer(render_answer(answer, (answer.action,)), (answer.action,)) == answer
    assert parse_answer(render_answer(answer)) == answer


def test_a_free_action_travels_word_for_word() -> None:
    action = '{"text": "a\\nb",\n "path": "C:\\\\new"}'
    answer = ParsedAnswer(action, thought="two\nlines")
    assert render_answer(answer).endswith(f"Action: {action}")
    assert parse_answer(render_answer(answer)) == answer
    assert parse_answer(f"Let me write it.\n**Action:** {action}\n") == ParsedAnswer(action)


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ("Action: take knife", "take knife"),
        ("  > **Action:** `TAKE KNIFE`.", "take knife"),
        ("Thought: hm\nSubgoal: arm myself\naction : take knife\nAction: drop it", "take knife"),
        ("take knife", "take knife"),
        ("Take knife.", "take knife"),
        ("- take knife", "take knife"),
        ("Action: juggle", "juggle"),
        ("I take the knife", None),
        ("Action:", None),
        ("", None),
    ],
)
def test_answers_in_many_dresses(answer: str, action: str | None) -> None:
    said = parse_answer(answer, ("take knife", "drop it"))
    assert (said.action if said else None) == action


def test_policies_of_one_loop_do_not_leak_into_the_next(model: Model, url: str) -> None:
    policy = ChatPolicy(ChatConfig(base_url=url, model="m"))
    for seed in range(2):
        jobs = [Job(task_of(seed))]
        (one,) = Rollout(policy, jobs, in_process(CorridorWorld(), 1), budget=Budget(20), origin=ORIGIN)
        assert one.success


def test_one_line_of_the_config_says_who_collects(smoke: Config) -> None:
    from flywheel.collect.stage import divided, plan

    other = smoke.model_copy(update={"collect": smoke.collect.model_copy(update={"teachers": {"chat": 1.0}})})
    assert [share.policy for share in plan(other, 1, "random")] == ["chat"]
    assert other.identity() == smoke.identity()
    assert divided({"a": 1, "b": 1, "c": 1}, 10) == {"a": 3, "b": 4, "c": 3}
    with pytest.raises(FlywheelError):
        load(ROOT / "configs" / "smoke.toml", ["collect.teachers={expert=-1}"])


def test_the_doctor_asks_whether_teachers_are_there(model: Model, url: str, tmp_path: Path) -> None:
    from flywheel.flows.doctor import diagnose

    def found(*settings: str) -> tuple[bool, str]:
        config = load(ROOT / "configs" / "smoke.toml", [f"data_dir={tmp_path / 'lake'}", *settings])
        (one,) = [finding for finding in diagnose(config) if finding.check == "teachers"]
        return one.ok, one.detail

    assert found() == (True, "expert, noisy_expert")
    assert found("collect.teachers={chat=1}", f"chat.base_url={url}", "chat.model=m") == (True, "chat")
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    assert found("collect.teachers={chat=1}", f"chat.base_url={nobody}", "chat.model=m") == (
        False,
        f"the chat server at {nobody} does not answer: APIConnectionError",
    )
    ok, detail = found("collect.teachers={chta=1}")
    assert not ok and "there is no teacher 'chta'; known: expert" in detail
