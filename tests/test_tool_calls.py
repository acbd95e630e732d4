"""Tool calls as actions: told wrong ones, recorded as messages, written by students under the tools' schemas."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.contexts.language import MarkerLanguage
from flywheel.agents.contexts.memory import Memory
from flywheel.agents.contexts.prompts import ACT, DONE, END, TASK, Piece, open_window
from flywheel.agents.contexts.tokenization import encode_plain, token_id
from flywheel.agents.inference.decoding import Fault, Written
from flywheel.agents.inference.endpoint import Answer
from flywheel.agents.inference.grammars import Allowed, tool_grammar
from flywheel.agents.inference.language_model import LocalLanguageModel, grammars_of
from flywheel.agents.policy import Decision, Decoding
from flywheel.agents.tool_dialogue import answer_of
from flywheel.environments.protocol import Observation
from flywheel.environments.tools import ANSWER_TOOL, Toolbox, with_answer
from flywheel.errors import ConfigError
from flywheel.messages import Message, ToolCall, action_of, calls_of, thought_of
from flywheel.policies.tokenizer import train_tokenizer
from flywheel.rollouts.episode import as_calls

WRITE = {
    "type": "function",
    "function": {
        "name": "write",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "lines": {"type": "array", "items": {"type": "integer"}}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}
TOOLBOX = Toolbox([WRITE, ANSWER_TOOL])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
names = st.text(st.characters(categories=["L", "N"], include_characters="_-."), min_size=1)


@given(st.lists(st.tuples(names, anything, st.booleans()), min_size=1, max_size=4))
def test_calls_travel_as_text_and_come_back(calls: list[tuple[str, Any, bool]]) -> None:
    """Line breaks and quotes inside arguments are JSON's own."""
    made = tuple(
        ToolCall("", name, json.dumps(value, indent=1 if wide else None, ensure_ascii=wide))
        for name, value, wide in calls
    )
    assert calls_of(action_of(Message("assistant", tool_calls=made))) == made


@given(st.text())
def test_any_text_is_read_as_some_calls_that_are_spelt_in_one_way(text: str) -> None:
    calls = calls_of(text)
    assert all(" " not in call.name for call in calls)
    assert calls_of(action_of(Message("assistant", tool_calls=calls))) == calls


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ('write {"path": ', "the arguments of write are no JSON"),
        ('write {"lines": [1]}', "the arguments of write do not fit: 'path' is a required property"),
        ('write {"path": "a", "lines": [1, "x"]}', r"the arguments of write\['lines'\]\[1\] do not fit: 'x' is not"),
        ("write [1]", "the arguments of write do not fit: \\[1\\] is not of type 'object'"),
        ('erase {"path": "a"}', "there is no tool 'erase'; there are: write, answer"),
        ("I would rather not.", "there is no tool 'I'"),
        ('write {"path": "a", "lines": NaN}', "the arguments of write are no JSON: NaN"),
        ("", "no tool was called; there are: write, answer"),
    ],
)
def test_a_call_that_cannot_be_made_is_answered(action: str, says: str) -> None:
    (result,) = TOOLBOX.results(action, lambda name, arguments: pytest.fail("it was made"))
    assert result.error is not None
    assert re.search(says, result.error)


def test_calls_are_made_in_order_and_what_they_raise_is_told() -> None:
    def run(name: str, arguments: dict[str, Any]) -> str:
        return f"{len('done') // len(arguments.get('lines', [1]))}"

    action = 'write {"path": "a"}\nwrite {"path": "b", "lines": []}\nanswer {"text": "x"}'
    results = TOOLBOX.results(action, run)
    assert [(result.content, result.error) for result in results] == [
        ("4", None),
        ("", "ZeroDivisionError: integer division or modulo by zero"),
        ("4", None),
    ]


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([WRITE, WRITE], "a tool is called 'write'"),
        ([{"function": {"name": "a b"}}], "a tool is called 'a b'"),
        ([{"function": {"name": "a", "parameters": {"type": "thing"}}}], "tool 'a': its parameters are no JSON schema"),
    ],
)
def test_tools_at_fault_are_refused(tools: list[Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Toolbox(tools)


@pytest.mark.parametrize(
    ("action", "may_speak", "must_call"),
    [
        ('write {"path": "a"}', True, True),
        ('write {"path": "a"}\nwrite {"path": "b"}', True, True),
        ("write is a tool", True, False),
        ("All is {done}.", True, False),
        ('write {"pat": "a"}', False, False),
    ],
)
def test_an_agent_that_may_speak_says_anything_but_a_broken_call(
    tokenizer: Any, action: str, may_speak: bool, must_call: bool
) -> None:
    for allowed, fits in (
        (Allowed(json.dumps([WRITE])), may_speak),
        (Allowed(json.dumps([WRITE]), must_call=True), must_call),
    ):
        matcher = grammars_of(tokenizer, MarkerLanguage(tokenizer)).matcher(allowed)
        ids = tokenizer.encode(action, add_special_tokens=False)
        taken = 0
        while taken < len(ids) and matcher.allowed()[ids[taken]]:
            matcher.take(ids[taken])
            taken += 1
        assert (taken == len(ids) and matcher.is_whole) is fits


def test_numbers_are_cut_into_threes() -> None:
    tokenizer = train_tokenizer(["order 12345 of Elm Street"], ["Elm Street"], 400, numbers=True)
    ids = tokenizer.encode("order 12345, 7 and 042 of Elm Street", add_special_tokens=False)
    pieces = [tokenizer.decode([one]) for one in ids]
    assert [piece for piece in pieces if piece.strip().isdigit()] == ["123", "45", "7", "042"]
    assert "Elm Street" in pieces


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(['write {"path": "notes.txt"}', "answer it"], [], 400)


@pytest.mark.parametrize(
    ("action", "fits"),
    [
        ('write {"path": "a b"}', True),
        ('write {"path":"a","lines":[1, 2]}', True),
        ('write {"path": "a"}\nanswer {"text": "é\\n"}', True),
        ('write {"lines": [1]}', False),
        ('write { "path": "a"}', False),
        ('write {"path": "a", "more": 1}', False),
        ('erase {"path": "a"}', False),
        ('write {"path": "a"} ', False),
    ],
)
def test_the_grammar_is_the_schema(tokenizer: Any, action: str, fits: bool) -> None:
    end = token_id(tokenizer, END)
    matcher = grammars_of(tokenizer, MarkerLanguage(tokenizer)).matcher(Allowed(TOOLBOX.text))
    for token in [*encode_plain(tokenizer, action), end]:
        if not matcher.allowed()[token]:
            assert not fits
            return
        matcher.take(token)
    assert fits


def test_a_schema_that_no_grammar_can_follow_is_told(tokenizer: Any) -> None:
    odd = {"function": {"name": "a", "parameters": {"type": "object", "properties": {"x": {"format": "odd"}}}}}
    with pytest.raises(ConfigError, match="cannot guide a student"):
        grammars_of(tokenizer, MarkerLanguage(tokenizer)).matcher(Allowed(Toolbox([odd]).text))
    assert tool_grammar(Allowed(TOOLBOX.text)).startswith("start: call")


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_an_untrained_student_calls_tools_as_they_are_declared(tokenizer: Any, temperature: float) -> None:
    """Random weights, and high temperature: whatever is written is calls that fit, and what has no end is no answer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **size))
    student = LocalLanguageModel(model, tokenizer, Decoding(temperature=temperature, max_action_tokens=200))
    flag = {
        "type": "object",
        "properties": {"on": {"type": "boolean"}},
        "required": ["on"],
        "additionalProperties": False,
    }
    tools = Toolbox([{"function": {"name": name, "parameters": flag}} for name in ("light", "fan")])
    window = open_window(Piece("Do it.", marker=TASK), Memory(), Observation("It is dark."))
    slots = list(range(8))
    for slot in slots:
        student.begin(slot, _task(slot), 0)
    contexts = [student.context(window, ACT) for _ in slots]
    answers = student.write(slots, contexts, [Allowed(tools.text, must_call=True)] * 7 + [None], may_end=True)
    faults = [answer.reason for answer in answers if isinstance(answer, Fault)]
    assert set(faults) <= {"a call, or JSON, of more than 200 tokens"}
    written = [answer for answer in answers if isinstance(answer, Written)]
    calls = [call for answer in written[:-1] for call in calls_of(answer.text or "")]
    assert calls or temperature == 0
    assert all(set(tools.arguments(call)) == {"on"} for call in calls)
    assert all(value <= 0 for answer in written for value in answer.logprobs)
    done = token_id(tokenizer, DONE)
    assert all(done not in answer.tokens[1:] for answer in written)


def _task(seed: int) -> Any:
    from flywheel.trajectory import Split, Task

    return Task("e", "{}", Split.TRAIN, seed)


@pytest.mark.parametrize(
    ("words", "acted", "called"),
    [
        ("write", "write {}", ["write"]),
        ('write {"path": "a"}\n', 'write {"path": "a"}', ["write"]),
        ("Let me think.", "Let me think.", []),
    ],
)
def test_text_that_calls_tools_is_spelt_as_the_record_spells_it(words: str, acted: str, called: list[str]) -> None:
    decision = as_calls(Decision(words, thought="hm"), TOOLBOX.observation([Message("user", "Go.")]), 0)
    assert decision.output is not None
    assert (decision.action, thought_of(decision.output)) == (acted, "hm")
    assert [call.name for call in decision.output.tool_calls] == called
    assert action_of(decision.output) == decision.action


def test_what_follows_a_broken_call_is_not_called() -> None:
    """One result answers one call, or the API refuses the next request."""
    calls = (ToolCall("1", "write", '{"path'), ToolCall("2", "write", '{"path": "b"}'))
    message = answer_of(Answer("", "m", calls=calls), TOOLBOX.text)
    assert message is not None
    assert [call.id for call in message.tool_calls] == ["1"]
    assert len(TOOLBOX.results(action_of(message), lambda name, arguments: "fine")) == 1
    both = answer_of(Answer("", "m", calls=(ToolCall("1", "write", "{}"), calls[1])), TOOLBOX.text)
    assert both is not None
    assert len(TOOLBOX.results(action_of(both), lambda name, arguments: "fine")) == len(both.tool_calls) == 2


def test_a_tool_that_has_the_answers_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="a tool is called 'answer', which is how a task ends here"):
        with_answer([ANSWER_TOOL])
