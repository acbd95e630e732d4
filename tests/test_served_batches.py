"""Which of a server's clients a batch waits for, and how their dialogues are told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.serving.returning import Returning
from flywheel.serving.transcripts import Transcript

BATCH = 0.1
TURNS = st.lists(st.lists(st.text(), min_size=1, max_size=3).map(tuple), max_size=4)


@pytest.mark.parametrize(("pause", "quorum"), [(0.001, 8), (0.05, 4), (0.2, 3)])
def test_a_batch_waits_for_those_who_come_back_in_time(pause: float, quorum: int) -> None:
    """Eight clients, of whom five were just answered: all are waited for, or half, or nobody but who is there."""
    now = [0.0]
    clients = Returning(lambda: now[0])
    for number in range(100):
        clients.answered(str(number))
        now[0] += pause
        clients.asked(str(number))
    for number in range(5):
        clients.answered(f"gone {number}")
    assert clients.quorum(3, BATCH) == quorum
    now[0] += 3 * pause
    assert clients.quorum(3, BATCH) <= 3


def test_nobody_is_waited_for_before_anything_is_known() -> None:
    assert Returning().quorum(1, 0.0) == 1


@given(TURNS, TURNS)
def test_a_transcript_names_what_was_said(turns: list[tuple[str, ...]], more: list[tuple[str, ...]]) -> None:
    whole = Transcript().then([*turns, *more])
    assert Transcript().then(turns).then(more).name == whole.name
    assert (whole.name == Transcript().then(turns).name) == (not more)


def test_where_a_text_ends_makes_another_transcript() -> None:
    names = {Transcript().then(turns).name for turns in ([("a", "bc")], [("ab", "c")], [("a",), ("bc",)], [("a", "b")])}
    assert len(names) == 4
