"""Any trajectory, verdict, route or segment that the data contract allows."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from hypothesis import strategies as st

from flywheel.datasets.lake.redaction import redact
from flywheel.messages import Message, ToolCall, action_of, text_of_inputs, thought_of
from flywheel.trajectory import Item, Route, RouteTo, Segment, Split, Step, StopReason, Trajectory, Verdict

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
text = any_text.filter(lambda words: redact(words, Counter()) == words)
"""Text as the lake stores it: without what it would take for a secret, as it takes `0@0.A` for an e-mail address."""
number = st.floats(allow_nan=False, allow_infinity=False)
small = st.integers(0, 2**31 - 1)
words = st.lists(text, max_size=3).map(tuple)
floats32 = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=3).map(tuple)

calls = st.builds(ToolCall, id=text, name=text, arguments=text)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=text,
    parts=st.none() | text,
    reasoning=st.none() | text,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=st.none() | text,
    name=st.none() | text,
    error=st.none() | text,
)
some_messages = st.none() | st.lists(messages, max_size=3).map(tuple)


def _with_messages(step: Step, inputs: tuple[Message, ...] | None, output: Message | None) -> Step:
    texts: dict[str, Any] = {}
    if inputs is not None:
        texts |= {"observation": text_of_inputs(inputs), "inputs": inputs}
    if output is not None:
        texts |= {"action": action_of(output), "thought": thought_of(output), "output": output}
    return dataclasses.replace(step, **texts)


def _with_final_messages(trajectory: Trajectory, inputs: tuple[Message, ...] | None) -> Trajectory:
    texts: dict[str, Any] = {} if inputs is None else {"final_observation": text_of_inputs(inputs)}
    return dataclasses.replace(trajectory, final_inputs=inputs, **texts)


plain_steps = st.builds(
    Step,
    index=st.just(0),
    observation=text,
    feedback=text,
    document=text,
    location=text,
    state_key=text,
    valid_actions=st.none() | words,
    thought=text,
    subgoal=text,
    new_subgoal=st.booleans(),
    action=text,
    reward=st.none() | number,
    progress=st.none() | number,
    terminated=st.booleans(),
    truncated=st.booleans(),
    policy_id=text,
    policy_version=text,
    trainable=st.booleans(),
    prompt_tokens=st.none() | small,
    completion_tokens=st.none() | small,
    logprobs=st.none() | floats32,
    seconds=number,
    teacher_action=st.none() | text,
    audit=text,
    cost=st.none() | number,
    top_tokens=st.none() | st.lists(words, max_size=2).map(tuple),
    top_logprobs=st.none() | st.lists(floats32, max_size=2).map(tuple),
)
steps = st.builds(_with_messages, plain_steps, some_messages, st.none() | messages)
plain_episodes = st.builds(
    Trajectory,
    trajectory_id=st.uuids().map(str),
    environment=text,
    parameters=text,
    split=st.sampled_from(Split),
    seed=st.integers(-(2**63), 2**63 - 1),
    task_id=text,
    task_group=text,
    instruction=text,
    policy=text,
    policy_id=text,
    policy_version=text,
    iteration=small,
    purpose=text,
    attempt=small,
    stop_reason=st.sampled_from(StopReason),
    success=st.none() | st.booleans(),
    score=st.none() | number,
    total_reward=st.none() | number,
    final_observation=text,
    final_feedback=text,
    final_state_key=text,
    error=text,
    parent_policy_id=text,
    config_digest=text,
    started_at=number,
    schema_version=small,
    tokens=st.none() | small,
    cost=st.none() | number,
    extra=st.none() | text.map(lambda word: json.dumps({"other": word})),
    length=st.just(0),
    steps=st.lists(steps, max_size=4).map(
        lambda some: tuple(dataclasses.replace(step, index=index) for index, step in enumerate(some))
    ),
).map(lambda one: dataclasses.replace(one, length=len(one.steps)))
episodes = st.builds(_with_final_messages, plain_episodes, some_messages)
verdicts = st.builds(
    Verdict,
    trajectory_id=text,
    verifier=text,
    version=text,
    arguments=text,
    completion=number,
    integrity=number,
    completion_threshold=number,
    integrity_threshold=number,
    passed=st.booleans(),
    confidence=number,
    items=st.lists(st.builds(Item, name=text, points=number, fraction=number, evidence=text), max_size=2).map(tuple),
    raw=text,
)
routes = st.builds(Route, text, st.sampled_from(RouteTo), st.booleans(), text, text)
segments = st.builds(Segment, text, small, small, small, text, st.booleans(), number, text)
