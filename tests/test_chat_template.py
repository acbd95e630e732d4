"""A pretrained base learns, plays and is served in its own language: its chat template."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.contexts.chat_template import DONE_TEXT, ChatTemplate
from flywheel.agents.contexts.history import FlatContext, HierarchicalContext, Limits
from flywheel.agents.contexts.language import MarkerLanguage, language_of
from flywheel.agents.contexts.prompts import ACT, SUBGOAL, Role, SubgoalOutcome, Window
from flywheel.agents.inference.grammars import Allowed
from flywheel.agents.inference.language_model import grammars_of
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.protocol import Observation
from flywheel.errors import PolicyError
from flywheel.evaluation.evaluate import evaluate
from flywheel.filters.curate import curate
from flywheel.gateway.agents import agent_tasks
from flywheel.messages import Message
from flywheel.policies.models import load_tokenizer
from flywheel.policies.registry import policy_directory
from flywheel.trajectory import Split
from tests.door_agent import config_of, task_rows
from tests.instruct_base import TOOLS_TEMPLATE, instruct_tokenizer, save_base
from tests.test_agent_world import played

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
TOOLS = json.dumps([LOOK])
LIMITS = Limits(window_steps=8)
CALLS = {
    "tags": TOOLS_TEMPLATE,
    "bare, one call": TOOLS_TEMPLATE.replace("<tool_call>\\n{", "{")
    .replace("}\\n</tool_call>", "}")
    .replace('"arguments": \'', '"parameters": \'')
    .replace("{%- for call in message.tool_calls or [] %}", "{%- for call in (message.tool_calls or [])[:1] %}"),
}
FORGETS = TOOLS_TEMPLATE.replace(
    "'\\n' + (message.content or '')",
    "'\\n' + ('<think></think>' if message.role == 'assistant' and loop.last else '') + (message.content or '')",
).replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think></think>' }}")
"""Leaves the reasoning of earlier turns out."""


def asked(text: str = "Look around.") -> Observation:
    messages = (Message("system", "You look."), Message("user", text))
    return Observation(f"You look.\n\n{text}", whole=True, tools=TOOLS, messages=messages, opens_task=True)


def answered(text: str) -> Observation:
    return Observation(text, whole=True, tools=TOOLS, messages=(Message("tool", text),))


def session(context: FlatContext, steps: Sequence[tuple[Observation, str]]) -> list[list[int]]:
    """Fold a session into a context; the prompts that were read on the way."""
    language, prompts = ChatTemplate(instruct_tokenizer()), []
    for seen, action in steps:
        prompts.append(language.prompt(context.observe(seen).pieces, ACT))
        context.act(seen, action, target=True)
    return prompts


STEPS = [
    (asked(), 'look {"at": "the door"}\nlook {"at": "the lamp"}'),
    (
        Observation(
            "a door\n\na lamp", whole=True, tools=TOOLS, messages=(Message("tool", "a door"), Message("tool", "a lamp"))
        ),
        "There are a door and a lamp.",
    ),
]


def window_of(steps: Sequence[tuple[Observation, str]]) -> Window:
    context = FlatContext("", LIMITS)
    session(context, steps)
    assert context.window is not None
    return context.window


def test_a_row_is_the_template_s_text_and_teaches_the_answers_with_their_ends() -> None:
    tokenizer = instruct_tokenizer()
    ((ids, weights),) = ChatTemplate(tokenizer).rows(window_of(STEPS).pieces, lambda piece: 1.0)
    calls = [{"function": {"name": "look", "arguments": {"at": where}}} for where in ("the door", "the lamp")]
    whole = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "You look."},
            {"role": "user", "content": "Look around."},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "a door"},
            {"role": "tool", "content": "a lamp"},
            {"role": "assistant", "content": "There are a door and a lamp."},
        ],
        tools=[LOOK],
        tokenize=False,
    )
    assert tokenizer.decode(ids) + "\n" == whole
    learned = tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight])
    assert learned == (
        '<tool_call>\n{"name": "look", "arguments": {"at": "the door"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "look", "arguments": {"at": "the lamp"}}\n</tool_call><|im_end|>'
        "There are a door and a lamp.<|im_end|>"
    )


@pytest.mark.parametrize("template", [TOOLS_TEMPLATE, FORGETS], ids=["keeps", "forgets"])
def test_what_is_read_in_play_is_what_was_learned_behind(template: str) -> None:
    """Also where the template writes earlier turns otherwise later on: each answer then has a row of its own."""
    language = ChatTemplate(instruct_tokenizer(template))
    context, prompts = FlatContext("", LIMITS), list[list[int]]()
    for seen, action in [*STEPS[:1], (answered("a door"), 'look {"at": "it"}'), (answered("a door"), "A door.")]:
        prompts.append(language.prompt(context.observe(seen).pieces, ACT))
        context.act(seen, action, target=True)
    assert context.window is not None
    rows = language.rows(context.window.pieces, lambda piece: 1.0)
    starts = [
        ids[:place]
        for ids, weights in rows
        for place in range(1, len(ids))
        if weights[place] and not weights[place - 1]
    ]
    assert starts == prompts
    assert len(rows) == (1 if template == TOOLS_TEMPLATE else 3)
    assert all(ids[place] == language.end for ids, weights in rows for place in _ends(weights))


def _ends(weights: Sequence[float]) -> list[int]:
    return [place for place, weight in enumerate(weights) if weight and not any(weights[place + 1 : place + 2])]


@given(st.text(max_size=20), st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>"]), st.text(max_size=20))
def test_text_is_data_whatever_it_spells(before: str, special: str, after: str) -> None:
    tokenizer = instruct_tokenizer()
    text = f"{before}{special}{after}"
    plain = window_of([(asked("x"), "y")])
    ((ids, _),) = ChatTemplate(tokenizer).rows(window_of([(asked(text), text)]).pieces, lambda piece: 1.0)
    ((usual, _),) = ChatTemplate(tokenizer).rows(plain.pieces, lambda piece: 1.0)
    specials = tokenizer.all_special_ids
    assert [token for token in ids if token in specials] == [token for token in usual if token in specials]
    assert text in tokenizer.decode(ids)


@pytest.mark.parametrize("template", CALLS.values(), ids=CALLS)
def test_calls_are_written_and_read_as_the_template_has_them(template: str) -> None:
    tokenizer = instruct_tokenizer(template)
    language = language_of(tokenizer)
    assert isinstance(language, ChatTemplate)
    action = 'look {"at": "the \\"door\\""}'
    context = FlatContext("", LIMITS)
    context.observe(asked())
    context.act(asked(), action, target=True)
    assert context.window is not None
    ((ids, weights),) = language.rows(context.window.pieces, lambda piece: 1.0)
    answer = [token for token, weight in zip(ids, weights, strict=True) if weight]
    matcher = grammars_of(tokenizer, language).matcher(Allowed(TOOLS, must_call=True))
    for token in answer[:-1]:
        assert matcher.allowed()[token], tokenizer.decode([token])
        matcher.take(token)
    assert matcher.is_whole
    assert language.action(answer[:-1]) == action
    spoken = tokenizer.encode("The door is open.", add_special_tokens=False)
    assert not matcher_fits(language, tokenizer, Allowed(TOOLS, must_call=True), spoken)
    assert matcher_fits(language, tokenizer, Allowed(TOOLS), spoken)
    assert not matcher_fits(language, tokenizer, Allowed(TOOLS), answer[: len(answer) // 2])
    done = tokenizer.encode(DONE_TEXT, add_special_tokens=False)
    assert language.action(done) is None
    assert matcher_fits(language, tokenizer, Allowed(TOOLS, must_call=True), done, language.done_text(may_end=True))


def matcher_fits(
    language: ChatTemplate, tokenizer: Any, allowed: Allowed, tokens: Sequence[int], done: str = ""
) -> bool:
    matcher = grammars_of(tokenizer, language).matcher(allowed, done)
    for token in tokens:
        if not matcher.allowed()[token]:
            return False
        matcher.take(token)
    return matcher.is_whole


def test_planner_and_executor_have_each_their_words() -> None:
    tokenizer = instruct_tokenizer()
    language = ChatTemplate(tokenizer)
    context = HierarchicalContext("", LIMITS)
    seen = asked()
    context.observe(seen)
    planned = tokenizer.decode(language.prompt(context.plan(seen).pieces, SUBGOAL))
    assert planned.endswith("Task: You look.\n\nLook around.<|im_end|>\n<|im_start|>assistant\n")
    context.adopt(seen, "look door", target=True)
    assert context.window is not None and context.plan_window is not None
    acted = tokenizer.decode(language.prompt(context.window.pieces, ACT))
    assert acted.endswith("<|im_start|>system\nSubgoal: look door<|im_end|>\n<|im_start|>assistant\n")
    context.act(seen, 'look {"at": "the door"}', target=True)
    context.observe(answered("a door"))
    context.finish(SubgoalOutcome.DONE, target=True)
    ((ids, weights),) = language.rows(context.window.pieces, lambda piece: 1.0)
    learned = tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight])
    assert learned.endswith(f"</tool_call><|im_end|>{DONE_TEXT}<|im_end|>")
    ((ids, weights),) = language.rows(context.plan_window.pieces, lambda piece: 1.0)
    assert tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight]) == (
        "look door<|im_end|>"
    )


def test_a_call_cut_off_in_the_middle_is_read_and_teaches_nobody() -> None:
    window = window_of([(asked(), 'look {"at": "the'), (answered("error"), "No.")])
    ((ids, weights),) = ChatTemplate(instruct_tokenizer()).rows(window.pieces, lambda piece: 1.0)
    tokenizer = instruct_tokenizer()
    assert tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight]) == "No.<|im_end|>"


def test_old_turns_of_a_long_session_are_left_out_where_they_are_learned_and_where_they_are_played() -> None:
    limits, language = Limits(window_steps=64, window_chars=1000), ChatTemplate(instruct_tokenizer())
    windows: list[Window] = []
    context, prompts = FlatContext("", limits, archive=windows), list[list[int]]()
    steps = [(asked(), 'look {"at": "0"}'), *((answered("x" * 150), f'look {{"at": "{n}"}}') for n in range(1, 20))]
    for seen, action in steps:
        prompts.append(language.prompt(context.observe(seen).pieces, ACT))
        context.act(seen, action, target=True)
    assert context.window is not None
    rows = [row for window in [*windows, context.window] for row in language.rows(window.pieces, lambda piece: 1.0)]
    starts = [
        ids[:place]
        for ids, weights in rows
        for place in range(1, len(ids))
        if weights[place] and not weights[place - 1]
    ]
    assert starts == prompts, "each answer is learned once, behind what is read before it in play"
    assert len(windows) > 3
    text = language._tokenizer.decode(prompts[-1])
    assert text.count("You look.") == text.count("Look around.") == 1
    assert len(text) < 2500
    for prompt in prompts:
        roles = [part.split("\n")[0] for part in language._tokenizer.decode(prompt).split("<|im_start|>")[1:]]
        assert roles[:2] == ["system", "user"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "does not show an agent its tools"),
        (
            TOOLS_TEMPLATE.replace("call.function.arguments | tojson", "'x'"),
            "does not write a tool call as its name and then its arguments in JSON",
        ),
        (TOOLS_TEMPLATE.replace("'<|im_start|>assistant\\n'", "'<|im_start|>bot\\n'"), "otherwise than behind its own"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ends an answer with no special token"),
        ("{{ raise_exception('no tools here') }}", "cannot write this conversation: no tools here"),
    ],
)
def test_templates_that_cannot_do_it_are_told(template: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        ChatTemplate(instruct_tokenizer(template)).call_format()


def test_a_base_without_a_template_learns_markers(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"has no chat template; name a file with one: student\.chat_template"):
        ChatTemplate(instruct_tokenizer(None))
    config = door_config(tmp_path, save_base(tmp_path / "base", None))
    with filled(config) as lake:
        card = distill(config, lake, "flat", 1)
        assert isinstance(language_of(load_tokenizer(policy_directory(lake, card.policy_id) / "flat")), MarkerLanguage)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "door_agent", raising=False)


def door_config(folder: Path, base: Path, **student: Any) -> Config:
    return config_of(folder, task_rows(8), student={"base": str(base), "lora_rank": 4, **student})


def filled(config: Config) -> Lake:
    lake = Lake.of(config, create=True)
    lake.append(played(config, agent_tasks(config, Split.TRAIN, 0, 6)), "collect")
    curate(config, lake)
    return lake


def test_adapters_on_one_base_learn_recorded_sessions_and_play(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    (tmp_path / "tools.jinja").write_text(TOOLS_TEMPLATE)
    config = door_config(tmp_path, base, chat_template="tools.jinja")
    with filled(config) as lake:
        for kind, roles in (("flat", [Role.FLAT]), ("hierarchical", [Role.PLANNER, Role.EXECUTOR])):
            card = distill(config, lake, kind, 1)
            folder = policy_directory(lake, card.policy_id)
            assert all((folder / role / "adapter_config.json").is_file() for role in roles)
            assert (folder / "base").is_dir()
            assert load_tokenizer(folder / roles[0]).chat_template == TOOLS_TEMPLATE
            rate = evaluate(config, lake, card.policy_id, Split.DEV, 1)
            assert (rate.tasks, rate.broken) == (2, 0)
        called = lake.sql(
            "select distinct name from tool_calls join trajectories using (trajectory_id) where purpose = 'evaluate'"
        )["name"].to_pylist()
    assert set(called) <= {"look", "open"}


def test_a_base_that_cannot_show_tools_stops_before_training(tmp_path: Path) -> None:
    config = door_config(
        tmp_path, save_base(tmp_path / "base", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    )
    with filled(config) as lake, pytest.raises(PolicyError, match="does not show an agent its tools"):
        distill(config, lake, "flat", 1)
