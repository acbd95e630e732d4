"""The gate: an exact paired test against closed forms; the champion pointer and its way back."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import Environment
from flywheel.errors import PolicyError
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.gate import decide, foresight, look_sizes, minimum_detectable_effect
from flywheel.evaluation.promotion import gate, opponent_of, slices_of
from flywheel.evaluation.statistics import clustered_mean, crossed_mean, rate
from flywheel.policies.registry import RANDOM, champion, crown, history, rollback
from flywheel.trajectory import Split, Task

ROOT = Path(__file__).parents[1]

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def _mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value, by counting (McNemar 1947)."""
    n, k = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


@settings(max_examples=20)
@given(outcomes)
def test_the_p_value_is_exact(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    decision = decide(ours, theirs, alpha=0.05, power=0.8)
    assert decision.p_value == pytest.approx(_mcnemar(decision.wins, decision.losses))
    assert decision.both + decision.wins + decision.losses + decision.neither == decision.tasks == len(pairs)
    assert decision.promoted == (decision.wins > decision.losses and decision.p_value <= 0.05)
    assert GateDecision.from_json(json.loads(json.dumps(asdict(decision)))) == decision
    assert decision.score.low <= decision.score.value <= decision.score.high


@settings(max_examples=20)
@given(outcomes)
def test_who_wins_does_not_depend_on_the_order_of_tasks(pairs: list[tuple[bool, bool]]) -> None:
    forward = decide(*zip(*pairs, strict=True), alpha=0.05, power=0.8)
    backward = decide(*zip(*reversed(pairs), strict=True), alpha=0.05, power=0.8)
    assert replace(forward, score=backward.score) == backward
    assert forward.score.value == pytest.approx(backward.score.value)


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


def test_a_slice_that_got_worse_forbids_promotion() -> None:
    ours, theirs = [True] * 20 + [False] * 6, [False] * 20 + [True] * 6
    late = np.arange(26) >= 20
    assert decide(ours, theirs, alpha=0.05, power=0.8).promoted
    decision = decide(ours, theirs, alpha=0.05, power=0.8, slices={"early": ~late, "late": late})
    assert (decision.promoted, decision.worse) == (False, ("late",))
    assert decision.sentence.endswith("worse on late")
    assert [(part.name, part.wins, part.losses) for part in decision.slices] == [("early", 20, 0), ("late", 0, 6)]
    assert decision.slices[1].p_value == pytest.approx(0.5**6)


class _World:
    def environments(self, count: int) -> list[Environment]:
        return []


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ('{"segment": "gold", "tools": ["refund", "mail"]}', ["segment gold", "tools refund", "tools mail"]),
        ('{"segment": null}', []),
        ('["segment"]', []),
        ("", []),
    ],
)
def test_a_tasks_data_names_slices(data: str, named: list[str]) -> None:
    task = Task("desk", "{}", Split.DEV, 1, "Do.", family="month-end", data=data)
    assert list(slices_of(_World(), task, ["segment", "tools"])) == ["desk", "month-end", *named]


def test_looks_share_the_level_and_grow() -> None:
    assert look_sizes(100, 1) == [100]
    assert look_sizes(100, 3) == [33, 67, 100]
    assert look_sizes(2, 5) == [1, 2]
    assert "level 0.05 in 2 looks" in foresight(100, 0.05, 0.8, 2)
    assert decide([False] * 9, [True] * 9, alpha=0.05, power=0.8).hopeless


def test_scores_that_share_a_group_are_drawn_together() -> None:
    """All differences of a group are equal: the interval is that of three draws, far wider than that of 300."""
    gains = np.repeat([0.0, 0.5, 1.0], 100)
    alone = clustered_mean(gains, range(300))
    grouped = clustered_mean(gains, np.repeat([0, 1, 2], 100).tolist())
    assert alone.value == grouped.value == pytest.approx(0.5)
    assert grouped.high - grouped.low > 5 * (alone.high - alone.low)
    assert (grouped.low, grouped.high) == (0.0, 1.0)


def test_seeds_and_tasks_are_both_drawn() -> None:
    constant = crossed_mean(np.full((3, 50), 0.25))
    assert (constant.value, constant.low, constant.high) == pytest.approx((0.25, 0.25, 0.25))
    by_seed = crossed_mean(np.repeat([[0.0], [1.0]], 200, axis=1))
    assert (by_seed.low, by_seed.high) == pytest.approx((0.0, 1.0))
    found = rate(5, 10)
    assert (found.low, found.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_the_simulation_decides_as_the_gate_does() -> None:
    spec = importlib.util.spec_from_file_location("simulation", ROOT / "benchmarks" / "gate.py")
    assert spec is not None and spec.loader is not None
    simulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulation)
    ours, theirs = simulation.played(0.2, 40, 40)
    for looks in (1, 2):
        fast = simulation.gate(ours, theirs, looks)
        for run in range(40):
            promoted = False
            for size in look_sizes(40, looks):
                slices = {str(part): np.arange(size) % simulation.SLICES == part for part in range(simulation.SLICES)}
                said = decide(ours[run, :size], theirs[run, :size], alpha=0.05 / looks, power=0.8, slices=slices)
                promoted = promoted or said.promoted
                if said.promoted or said.hopeless:
                    break
            assert promoted == fast[run]


def test_unpaired_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        decide([True], [True, False], alpha=0.05, power=0.8)


def test_the_best_of_several_challengers_is_promoted_and_the_level_is_shared(lake: Lake, smoke: Config) -> None:
    config = smoke.model_copy(
        update={
            "gate": smoke.gate.model_copy(update={"baseline": "noisy_expert"}),
            "evaluate": smoke.evaluate.model_copy(update={"dev_tasks": 16}),
        }
    )
    assert opponent_of(config, champion(lake)) == "noisy_expert"
    assert opponent_of(config, "student-a") == "student-a"
    best, passed_over = gate(config, lake, ["expert", "noisy_expert"], RANDOM, 1)
    assert champion(lake) == "expert"
    assert (best.promoted, passed_over.promoted, passed_over.better) == (True, False, "expert")
    assert passed_over.p_value <= passed_over.alpha == best.alpha == config.gate.alpha / 2
    assert passed_over.sentence.startswith("passed over for expert")
    assert "one of 2 challengers" in best.sentence
    before = len(history(lake))
    assert gate(config, lake, ["expert", "noisy_expert"], RANDOM, 1) == [best, passed_over]
    assert len(history(lake)) == before
    rows = lake.sql("select challenger_id, promoted from gates").to_pylist()
    assert [(row["challenger_id"], bool(row["promoted"])) for row in rows] == [
        ("expert", True),
        ("noisy_expert", False),
    ]


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


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_rate_has_wilson_s_interval(failures: int, tasks: int) -> None:
    successes = max(tasks - failures, 0)
    interval = rate(successes, tasks)
    expected = binomtest(successes, tasks).proportion_ci(0.95, method="wilson")
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (successes / tasks, expected.low, expected.high)
    )
