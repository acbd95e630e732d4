"""Messages are the record: what an agent was told and what it answered, the same in Python, in files and in SQL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.conversation import closing_of, inputs_of, opening_of, output_of
from flywheel.datasets.lake.lake import Lake
from flywheel.messages import Message, ToolCall, action_of, agree, text_of_inputs, thought_of
from flywheel.trajectory import Trajectory
from tests.strategies import episodes

CALL = ToolCall("c1", "ls", '{"path":"/srv"}')
ASKED = (Message("system", "You are terse."), Message("user", "count the files of /srv"))
CALLED = Message("assistant", "I look.", reasoning="one call", tool_calls=(CALL,))
ANSWERED = (Message("tool", "a b", tool_call_id="c1"),)
SAID = Message("assistant", "two")


@pytest.fixture
def tool_run(golden: list[Trajectory]) -> Trajectory:
    """A run of two steps with a tool call."""
    steps = []
    for index, (inputs, output) in enumerate([(ASKED, CALLED), (ANSWERED, SAID)]):
        steps.append(
            dataclasses.replace(
                golden[0].steps[index],
                feedback="",
                document="",
                observation=text_of_inputs(inputs),
                action=action_of(output),
                thought=thought_of(output),
                inputs=inputs,
                output=output,
            )
        )
    return dataclasses.replace(golden[0], steps=tuple(steps), length=2, system="You are terse.", tools="[]")


def _calling(arguments: str) -> Message:
    return Message("assistant", tool_calls=(ToolCall("c", "look", arguments),))


def test_columns_say_what_the_messages_say(tool_run: Trajectory) -> None:
    first, last = tool_run.steps
    assert first.observation == "You are terse.\n\ncount the files of /srv"
    assert (first.action, first.thought) == ('ls {"path":"/srv"}', "one call\nI look.")
    assert (last.observation, last.action, last.thought) == ("a b", "two", "")
    with pytest.raises(ValueError, match="step 0: the observation is not"):
        dataclasses.replace(first, observation="something else")
    with pytest.raises(ValueError, match="step 0: the action or the thought is not"):
        dataclasses.replace(first, action="something else")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trajectories=st.lists(episodes, min_size=1, max_size=3, unique_by=lambda trajectory: trajectory.trajectory_id))
def test_sql_says_what_python_says(tmp_path_factory: pytest.TempPathFactory, trajectories: list[Trajectory]) -> None:
    with Lake(tmp_path_factory.mktemp("lake"), create=True) as lake:
        lake.append(trajectories, "episodes")
        steps = lake.sql('select observation, action, thought from steps order by trajectory_id, "index"').to_pylist()
        ends = lake.sql("select final_observation as seen from trajectories order by trajectory_id").to_pylist()
        rows = lake.sql(
            """select trajectory_id, role, content, reasoning, tool_calls, error from messages
               order by trajectory_id, "index", position"""
        ).to_pylist()
    ordered = sorted(trajectories, key=lambda trajectory: trajectory.trajectory_id)
    assert steps == [
        {"observation": step.observation, "action": step.action, "thought": step.thought}
        for trajectory in ordered
        for step in trajectory.steps
    ]
    assert [row["seen"] for row in ends] == [trajectory.final_observation for trajectory in ordered]
    expected = [
        (trajectory.trajectory_id, message)
        for trajectory in ordered
        for message in (
            *opening_of(trajectory),
            *(message for step in trajectory.steps for message in (*inputs_of(step), output_of(step))),
            *closing_of(trajectory),
        )
    ]
    assert [(row["trajectory_id"], row["role"], row["content"], row["reasoning"], row["error"]) for row in rows] == [
        (owner, message.role, message.content, message.reasoning, message.error) for owner, message in expected
    ]
    assert [row["tool_calls"] for row in rows] == [
        [dataclasses.asdict(call) for call in message.tool_calls] for _, message in expected
    ]


def test_no_text_is_stored_twice(lake: Lake, tool_run: Trajectory, golden: list[Trajectory]) -> None:
    lake.append([tool_run, golden[1]], "episodes")
    with lake.connect() as connection:
        rows = connection.sql(
            "select inputs is null, observation is null, action is null, thought is null from raw_steps group by all"
        ).fetchall()
    assert sorted(rows) == [(False, True, True, True), (True, False, False, False)]
    (back,) = lake.trajectories([tool_run.trajectory_id])
    assert back == tool_run


def test_tool_calls_meet_their_results(lake: Lake, tool_run: Trajectory) -> None:
    lake.append([tool_run], "episode")
    (call,) = lake.sql("select * from tool_calls").to_pylist()
    assert (call["index"], call["name"], call["result"], call["error"]) == (0, "ls", "a b", None)
    assert lake.sql("select arguments ->> '$.path' as path from tool_calls")["path"].to_pylist() == ["/srv"]


def test_an_id_that_is_used_again_means_the_next_answer(lake: Lake, tool_run: Trajectory) -> None:
    again = dataclasses.replace(
        tool_run.steps[1],
        index=1,
        action=action_of(CALLED),
        thought=thought_of(CALLED),
        output=CALLED,
    )
    end = (Message("tool", "c", tool_call_id="c1", error="gone"),)
    lake.append(
        [
            dataclasses.replace(
                tool_run, steps=(tool_run.steps[0], again), final_inputs=end, final_observation=text_of_inputs(end)
            )
        ],
        "episode",
    )
    rows = lake.sql('select result, error from tool_calls order by "index"').to_pylist()
    assert rows == [{"result": "a b", "error": None}, {"result": "c", "error": "gone"}]


def test_calls_without_ids_are_answered_in_their_order_and_unanswered_ones_by_nobody(
    lake: Lake, tool_run: Trajectory
) -> None:
    def called(*ids: str) -> Message:
        return Message("assistant", tool_calls=tuple(ToolCall(name, "ls", "{}") for name in ids))

    inputs = [ASKED, (Message("tool", "RA"), Message("tool", "RB")), (), (Message("tool", "late", tool_call_id="c"),)]
    outputs = [called("", ""), called("c"), called("c"), SAID]
    steps = tuple(
        dataclasses.replace(
            tool_run.steps[0],
            index=index,
            observation=text_of_inputs(messages),
            action=action_of(answer),
            thought=thought_of(answer),
            inputs=messages,
            output=answer,
        )
        for index, (messages, answer) in enumerate(zip(inputs, outputs, strict=True))
    )
    lake.append([dataclasses.replace(tool_run, steps=steps, length=4)], "episode")
    rows = lake.sql('select "index", result from tool_calls order by "index", position').to_pylist()
    assert [(row["index"], row["result"]) for row in rows] == [(0, "RA"), (0, "RB"), (1, None), (2, "late")]


def test_a_column_of_messages_can_be_streamed_alone(lake: Lake, tool_run: Trajectory, tmp_path: Path) -> None:
    lake.append([tool_run], "episode")
    (part,) = lake.parts_of([tool_run.trajectory_id])
    table = lake.steps(part, [tool_run.trajectory_id], ["action"])
    assert table.column_names == ["action"]
    assert table["action"].to_pylist() == ['ls {"path":"/srv"}', "two"]


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (Message("assistant", "Done."), Message("assistant", "All is done."), True),
        (_calling('{"a": 1, "b": 2}'), _calling('{"b":2,"a":1}'), True),
        (_calling('{"a": 1}'), _calling('{"a": 2}'), False),
        (_calling('{"a": 1}'), Message("assistant", "Done."), False),
        (_calling(""), _calling("{}"), True),
        (_calling("{a"), _calling("{a"), True),
    ],
)
def test_answers_agree_where_they_do_the_same(ours: Message, theirs: Message, same: bool) -> None:
    assert agree(ours, theirs) is same
