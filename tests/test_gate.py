"""The gate: an exact paired test against closed forms; the champion pointer and its way back."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.datasets.lake import Lake
from flywheel.distill.gate import decide, minimum_detectable_effect
from flywheel.distill.registry import RANDOM, champion, crown, history, rollback
from flywheel.errors import PolicyError

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def _mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value, by counting (McNemar 1947)."""
    n, k = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


@given(outcomes)
def test_the_p_value_is_exact(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    decision = decide(ours, theirs, alpha=0.05, power=0.8)
    assert decision.p_value == pytest.approx(_mcnemar(decision.wins, decision.losses))
    assert decision.both + decision.wins + decision.losses + decision.neither == decision.tasks == len(pairs)
    assert decision.promoted == (decision.wins > decision.losses and decision.p_value <= 0.05)


@given(outcomes)
def test_who_wins_does_not_depend_on_the_order_of_tasks(pairs: list[tuple[bool, bool]]) -> None:
    forward = decide(*zip(*pairs, strict=True), alpha=0.05, power=0.8)
    backward = decide(*zip(*reversed(pairs), strict=True), alpha=0.05, power=0.8)
    assert forward == backward


def test_known_decisions() -> None:
    assert decide([True] * 6, [False] * 6, alpha=0.05, power=0.8).promoted
    assert not decide([True] * 5, [False] * 5, alpha=0.05, power=0.8).promoted
    assert not decide([False] * 20, [True] * 20, alpha=0.05, power=0.8).promoted
    assert not decide([True] * 50, [True] * 50, alpha=0.05, power=0.8).promoted


def test_more_tasks_find_smaller_effects() -> None:
    effects = [minimum_detectable_effect(tasks, 0.2, 0.05, 0.8) for tasks in (20, 50, 100, 200)]
    assert effects == sorted(effects, reverse=True)
    assert 0 < effects[-1] < effects[0] <= 1
    assert minimum_detectable_effect(5, 0.2, 0.05, 0.8) == 1.0


def test_unpaired_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        decide([True], [True, False], alpha=0.05, power=0.8)


def test_rollback_walks_back_through_the_history(lake: Lake) -> None:
    assert champion(lake) == RANDOM
    with pytest.raises(PolicyError, match="nothing to roll back"):
        rollback(lake)
    crown(lake, "a", "won", "gate-1")
    crown(lake, "a", "won", "gate-1")
    crown(lake, "b", "won", "gate-2")
    assert champion(lake) == "b"
    assert [rollback(lake), rollback(lake)] == ["a", RANDOM]
    with pytest.raises(PolicyError, match="nothing to roll back"):
        rollback(lake)
    crown(lake, "c", "won", "gate-3")
    assert rollback(lake) == RANDOM
    assert len(history(lake)) == 6
