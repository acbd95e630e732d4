"""Progress of long work: how much of how much, and how long the rest takes where anyone can know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.flows import progress
from flywheel.flows.progress import bar, left, training_bar


@pytest.mark.parametrize(
    ("done", "total", "now", "words"),
    [
        (50, 100, 60.0, ", about 60 s left"),
        (10, 100, 60.0, ", about 9 min left"),
        (1, 1000, 60.0, ", about 16.6 h left"),
        (99, 100, 10.0, ", about 5 s left"),
        (0, 100, 10.0, ""),
        (100, 100, 10.0, ""),
        (7, None, 10.0, ""),
    ],
)
def test_the_time_left_is_told_where_it_is_known(done: int, total: int | None, now: float, words: str) -> None:
    assert left((0.0, 0), done, total, now) == words


def test_what_was_done_before_says_nothing_of_the_speed() -> None:
    assert left((60.0, 5_000), 5_000, 10_000, 120.0) == ""
    assert left((60.0, 5_000), 5_500, 10_000, 120.0) == ", about 9 min left"


@given(st.integers(1, 99), st.floats(0.1, 1e5))
def test_the_time_left_is_never_negative(done: int, now: float) -> None:
    assert "-" not in left((0.0, 0), done, 100, now)


def test_a_pipe_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with bar("collect 1", 4) as advance:
        advance(1)
        advance(1)
        advance(2)
    with bar("import") as advance:
        advance(1_234)
    with training_bar("distill 1") as report:
        report("flat", 1, 2, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "collect 1: 1 of 4 episodes"
    assert lines[1].startswith("collect 1: 2 of 4 episodes, about")
    assert lines[2:] == ["collect 1: 4 of 4 episodes", "import: 1,234 episodes", "distill 1 flat: 1 of 2 loss 0.500"]
