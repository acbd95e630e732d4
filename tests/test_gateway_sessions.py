"""Which session a call belongs to, and how the calls of a session become trajectories."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from flywheel.gateway.fingerprints import chain
from flywheel.gateway.sessions import OpenSessions, named_session
from flywheel.gateway.spool import Call
from flywheel.gateway.threads import threads_of
from tests.gateways import TOOLS, Recorder, recording


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(recorder: Recorder, messages: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    """The model's answer; the messages grow by it."""
    message: dict[str, Any] = recorder.post({"messages": messages}, **given).json()["choices"][0]["message"]
    messages.append(message)
    return message


def actions(recorder: Recorder) -> dict[str, list[str]]:
    """Trajectory → what was done in it, what is only context in brackets."""
    return {
        trajectory.trajectory_id: [
            f"{step.action}" if step.trainable else f"({step.action})" for step in trajectory.steps
        ]
        for trajectory in recorder.trajectories()
    }


def test_a_conversation_that_goes_on_is_one_session_without_being_named(recorder: Recorder) -> None:
    runs = [[user("first")], [user("second")], [user("first")]]
    for _ in range(3):
        for messages in runs:
            ask(recorder, messages)
            messages.append(user(f"more, {len(messages)}"))
    trajectories = recorder.trajectories()
    assert [trajectory.length for trajectory in trajectories] == [3, 3, 3]
    assert len({trajectory.task_name for trajectory in trajectories}) == 3
    assert [trajectory.parent_trajectory_id for trajectory in trajectories] == [None] * 3


def test_other_spellings_of_the_same_conversation_go_on_with_it(recorder: Recorder) -> None:
    first = recorder.post({"messages": [user("look here")], "tools": TOOLS}).json()["choices"][0]["message"]
    call = first["tool_calls"][0]
    spaced = {**call, "function": {**call["function"], "arguments": ' { "at" :  "look here" } '}}
    again = [
        {"role": "user", "content": [{"type": "text", "text": "look here"}]},
        {"role": "assistant", "content": "", "refusal": None, "tool_calls": [spaced], "annotations": []},
        {"role": "tool", "tool_call_id": call["id"], "content": "a lamp"},
    ]
    recorder.post({"messages": again})
    (trajectory,) = recorder.trajectories()
    assert trajectory.length == 2


def test_a_session_may_be_named_in_the_key_a_header_or_the_path(recorder: Recorder) -> None:
    for place, how in enumerate(
        ({"headers": {"authorization": "Bearer sk-fw-mine"}}, {"headers": {"x-flywheel-session": "mine"}})
    ):
        ask(recorder, [user(f"run {place}")], **how)
    path = recorder.url.replace("/v1", "/s/mine/v1")
    reply = httpx.post(f"{path}/chat/completions", json={"model": "m", "messages": [user("run 2")]})
    assert reply.headers["x-flywheel-session"] == "mine"
    trajectories = recorder.trajectories()
    assert {trajectory.task_name for trajectory in trajectories} == {"mine"}
    main, *others = trajectories
    assert {trajectory.parent_trajectory_id for trajectory in others} == {main.trajectory_id}
    assert recorder.post({"messages": [user("x")]}, headers={"x-flywheel-session": "no/slash"}).status_code == 400


def test_a_retry_an_edit_and_a_side_call_branch_off(recorder: Recorder) -> None:
    name = {"headers": {"x-flywheel-session": "s"}}
    messages = [user("start")]
    ask(recorder, messages, **name)
    messages.append(user("go on"))
    ask(recorder, list(messages), **name)  # an answer that the agent throws away
    ask(recorder, messages, **name)
    edited = [*messages[:2], user("no, back")]
    ask(recorder, edited, **name)
    ask(recorder, [user("a title for this, please")], **name)
    messages.append(user("the end"))
    ask(recorder, messages, **name)
    found = list(actions(recorder).values())
    hear = "I hear {} after {} messages"
    assert found == [
        [hear.format("start", 1), hear.format("go on", 3), hear.format("the end", 5)],
        [f"({hear.format('start', 1)})", hear.format("go on", 3)],
        [f"({hear.format('start', 1)})", hear.format("no, back", 3)],
        [hear.format("a title for this, please", 1)],
    ]


def test_compaction_is_known_by_the_ids_of_tool_calls(recorder: Recorder) -> None:
    first = recorder.post({"messages": [user("look at this")], "tools": TOOLS}).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "a lamp"}
    recorder.post({"messages": [user("Summary: you look at things."), first, result]})
    recorder.post({"messages": [user("Summary: you look at things.")]})
    names = [trajectory.task_name for trajectory in recorder.trajectories()]
    assert names[0] == names[1] != names[2]


def test_a_session_that_was_over_and_goes_on_is_linked(recorder: Recorder) -> None:
    messages = [user("start")]
    ask(recorder, messages, headers={"x-flywheel-session": "s"})
    recorder.lake()
    messages.append(user("one more thing"))
    ask(recorder, messages, headers={"x-flywheel-session": "s"})
    first, second = recorder.trajectories()
    assert (first.length, second.length) == (1, 2)
    assert [step.trainable for step in second.steps] == [False, True]
    assert (first.task_id, second.parent_trajectory_id) == (second.task_id, first.trajectory_id)


def test_two_clients_of_one_session_do_not_mix(recorder: Recorder) -> None:
    name = {"headers": {"x-flywheel-session": "shared"}}
    one, two = [user("I am one")], [user("I am two")]
    for turn in range(3):
        for messages in (one, two):
            ask(recorder, messages, **name)
            messages.append(user(f"turn {turn}"))
    trajectories = recorder.trajectories()
    assert [trajectory.length for trajectory in trajectories] == [3, 3]
    assert {trajectory.instruction for trajectory in trajectories} == {"I am one", "I am two"}


def test_an_open_session_goes_on_after_a_restart(upstream: str, tmp_path: Path) -> None:
    messages = [user("start")]
    with recording(tmp_path, upstream) as recorder:
        ask(recorder, messages)
    messages.append(user("go on"))
    with recording(tmp_path, upstream) as recorder:
        ask(recorder, messages)
        (trajectory,) = recorder.trajectories()
    assert trajectory.length == 2


def test_a_session_of_two_thousand_turns(recorder: Recorder) -> None:
    """Each call repeats all that was said; the spool keeps each message once."""
    session, messages, calls = "long", [user("begin")], list[Call]()
    opened, prefixes = OpenSessions(lambda name: 0), chain(messages)
    for turn in range(2000):
        place = opened.place(session, prefixes, (), "", float(turn))
        new = [{"role": "assistant", "content": f"answer {turn}"}, user(f"turn {turn}")]
        calls.append(call_of(str(turn), place.parent, messages[place.kept :], new[0], float(turn)))
        messages, prefixes = [*messages, *new], [*prefixes, *chain(new, prefixes[-1])]
        opened.answered(session, str(turn), [prefixes[-2]], ())
    (thread,) = threads_of(calls)
    assert len(thread.calls) == 2000
    assert sum(len(call.request["messages"]) for call in calls) == 2000


def test_the_trace_joins_what_nothing_else_does(recorder: Recorder) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for text in ("plan", "search for it"):
        ask(recorder, [user(text)], headers={"traceparent": trace})
    ask(recorder, [user("other")], headers={"traceparent": "nonsense"})
    names = [trajectory.task_name for trajectory in recorder.trajectories()]
    assert names[0] == names[1] != names[2]


def call_of(name: str, parent: str, messages: list[Any], answer: dict[str, Any], began: float) -> Call:
    response = {"choices": [{"message": answer}]}
    return Call(name, "s", 0, parent, 0, 0, began, 0.1, "chat", 200, "", [], [], "", {"messages": messages}, response)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_every_call_is_in_exactly_one_thread(parents: list[int]) -> None:
    """Whatever the tree: threads partition the calls, each goes from parent to child, its context comes from a root."""
    calls = [
        call_of(str(place), str(parent) if parent < place else "", [user("x")], user("y"), float(place))
        for place, parent in enumerate(parents)
    ]
    threads = threads_of(calls)
    assert sorted(call.id for thread in threads for call in thread.calls) == sorted(call.id for call in calls)
    assert [len(thread.calls) for thread in threads] == sorted((len(thread.calls) for thread in threads), reverse=True)
    for number, thread in enumerate(threads):
        whole = [*thread.context, *thread.calls]
        assert whole[0].parent == ""
        assert all(after.parent == before.id for before, after in pairwise(whole))
        if thread.branch_of is not None:
            assert thread.branch_of < number
            assert thread.context[-1] in threads[thread.branch_of].calls


TEXT = st.text(max_size=20)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXT})


@given(st.lists(MESSAGE, max_size=8), st.lists(MESSAGE, max_size=4))
def test_chains_are_equal_exactly_for_equal_prefixes(
    messages: list[dict[str, Any]], more: list[dict[str, Any]]
) -> None:
    whole = chain([*messages, *more])
    assert whole[: len(messages)] == chain(messages)
    assert whole == chain(messages) + chain(more, chain(messages)[-1] if messages else b"")
    changed = [*messages, user("another word")]
    if more and more[0] != changed[-1]:
        same = more[0]["role"] == "user" and more[0]["content"].strip() == "another word"
        assert same or chain(changed)[-1] != whole[len(messages)]


@given(st.dictionaries(st.sampled_from(["authorization", "x-api-key", "x-flywheel-session"]), TEXT), TEXT)
def test_names_of_sessions_are_short_and_plain(headers: dict[str, str], path: str) -> None:
    try:
        name = named_session(headers, path)
    except ValueError:
        return
    assert len(name) <= 64 and all(letter.isascii() and (letter.isalnum() or letter in "_.-") for letter in name)


def test_interleaved_runs_are_told_apart(recorder: Recorder) -> None:
    """Forty runs of a few tasks at random, unnamed: each is one trajectory."""
    drawn = random.Random(0)
    runs = [[user(f"task {number % 5}")] for number in range(40)]
    left = [place for place in range(40) for _ in range(3)]
    drawn.shuffle(left)
    for place in left:
        ask(recorder, runs[place])
        runs[place].append(user(f"result {place} {json.dumps(len(runs[place]))}"))
    trajectories = recorder.trajectories()
    assert sorted(trajectory.length for trajectory in trajectories) == [3] * 40
