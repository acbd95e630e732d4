"""The test of "no worse": exact, conservative, and promoted by where a margin is set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from benchmarks.noninferiority import LEVEL, promoted
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.gate import decide
from flywheel.evaluation.noninferiority import noninferiority_p_value, outcomes


def test_one_task_has_a_closed_form() -> None:
    """Of one task, a win is the most extreme outcome; at the margin it comes at most with (1 - margin) / 2."""
    assert noninferiority_p_value(1, 0, 1, 0.2) == pytest.approx(0.4, abs=1e-6)


def test_nothing_but_ties_is_evidence() -> None:
    """That all tasks are tied has at most the chance (1 - margin) ** tasks, and no more extreme outcomes are likelier
    than they are together."""
    assert noninferiority_p_value(0, 0, 100, 0.1) < 0.025
    assert noninferiority_p_value(0, 0, 10, 0.1) > 0.025


@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.02, 0.05, 0.1, 0.3]))
@settings(max_examples=40, deadline=None)
def test_more_wins_and_fewer_losses_never_count_against_it(wins: int, losses: int, margin: float) -> None:
    p_value = noninferiority_p_value(wins, losses, 50, margin)
    assert 0 <= p_value <= 1
    assert noninferiority_p_value(wins + 1, losses, 50, margin) <= p_value + 1e-9
    assert noninferiority_p_value(wins, losses + 1, 50, margin) >= p_value - 1e-9


@pytest.mark.parametrize("margin", [0.05, 0.15])
@pytest.mark.parametrize("loss_rate", [0.16, 0.3, 0.5])
def test_it_keeps_its_level_at_the_margin(margin: float, loss_rate: float) -> None:
    """The chance to promote a challenger that is worse by exactly the margin, summed over every outcome."""
    tasks, level = 30, 0.05
    rates = [loss_rate - margin, loss_rate, 1 - 2 * loss_rate + margin]
    outcomes = [(wins, losses) for wins in range(tasks + 1) for losses in range(tasks + 1 - wins)]
    promoted = [pair for pair in outcomes if noninferiority_p_value(*pair, tasks, margin) <= level]
    chance = sum(multinomial.pmf([wins, losses, tasks - wins - losses], tasks, rates) for wins, losses in promoted)
    assert 0 < chance <= level


def test_the_benchmark_promotes_as_the_test_does() -> None:
    wins, losses = outcomes(24)
    pairs = zip(wins.astype(int).tolist(), losses.astype(int).tolist(), strict=True)
    expected = [noninferiority_p_value(won, lost, 24, 0.2) <= LEVEL for won, lost in pairs]
    assert promoted(wins, losses, 24, 0.2).tolist() == expected
    assert any(expected)


def test_a_margin_outside_of_shares_is_refused() -> None:
    with pytest.raises(ValueError, match=r"margin is 1\.5"):
        noninferiority_p_value(1, 1, 10, 1.5)


def decided(wins: int, losses: int, ties: int, margin: float) -> GateDecision:
    ours = np.repeat([True, False, True], [wins, losses, ties])
    theirs = np.repeat([False, True, True], [wins, losses, ties])
    return decide(ours.tolist(), theirs.tolist(), alpha=0.05, power=0.8, margin=margin)


def test_the_gate_promotes_what_is_no_worse_only_where_a_margin_says_so() -> None:
    assert not decided(10, 11, 180, 0.0).promoted
    decision = decided(10, 11, 180, 0.1)
    assert decision.promoted
    assert "no worse by 10%" in decision.sentence
    assert not decided(10, 40, 180, 0.1).promoted


def test_who_is_better_is_promoted_with_a_margin_too() -> None:
    assert decided(20, 3, 100, 0.05).promoted
