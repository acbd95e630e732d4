"""The tokenizer: lossless on any text, one token for a name wherever it stands, few tokens for templates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.contexts.prompts import ACT, END, SPECIAL_TOKENS, Piece
from flywheel.agents.contexts.tokenization import PieceTokenizer, token_id
from flywheel.policies.tokenizer import named_things, train_tokenizer

TEMPLATE = "In one part of the room you see a fridge, that contains a red onion, and a raw carrot."
TEXTS = [TEMPLATE, "slice the red onion\nfry the carrot\n", "take red onion", "take carrot"] * 50
TOKENIZER = train_tokenizer(TEXTS, ["red onion", "carrot"], 500)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_a_name_is_the_same_token_everywhere() -> None:
    (onion,) = TOKENIZER.encode("red onion", add_special_tokens=False)
    for text in (TEMPLATE, "slice the red onion\n", "take red onion<|end|>"):
        assert onion in TOKENIZER.encode(text, add_special_tokens=False)


def test_templates_are_few_tokens_and_markers_one_each() -> None:
    assert len(TOKENIZER.encode(TEMPLATE, add_special_tokens=False)) < 10
    for marker in SPECIAL_TOKENS:
        assert len(TOKENIZER.encode(marker, add_special_tokens=False)) == 1


def test_what_follows_a_marker_keeps_its_tokens() -> None:
    marked = train_tokenizer([f"<|view|>{TEMPLATE}", "<|outcome|>done"] * 50, ["red onion", "carrot"], 500)
    plain = train_tokenizer([TEMPLATE, "done"] * 50, ["red onion", "carrot"], 500)
    assert marked.encode(f"<|view|>{TEMPLATE}")[1:] == plain.encode(TEMPLATE)
    assert len(marked.encode("<|outcome|>done")) == 2


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "red onion", "x", " "]), max_size=8).map("".join))
def test_text_never_becomes_structure(text: str) -> None:
    """Neither what a user types nor what was trained on makes a marker."""
    hostile = train_tokenizer([*TEXTS, *SPECIAL_TOKENS, "a<|act|>b"] * 3, ["red onion"], 500)
    special = {token_id(hostile, marker) for marker in SPECIAL_TOKENS}
    ids = PieceTokenizer(hostile).ids(text)
    assert not special & set(ids)
    assert hostile.decode(ids) == text
    pieces = [Piece(text, marker=ACT, ends=True)]
    assert PieceTokenizer(hostile).context(pieces) == [token_id(hostile, ACT), *ids, token_id(hostile, END)]


def test_named_things() -> None:
    actions = ["take red onion", "cook red onion in oven", "look around", "put knife on kitchen table", "wait"]
    assert named_things(actions) == ["kitchen table", "red onion", "around", "knife", "oven"]
