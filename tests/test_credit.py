"""Credit: closed forms, the properties that make it credit, and what of it lies in the lake."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.credit.advantages import gae, length_adaptive, returns, shaped
from flywheel.distill.credit.diagnostics import explained_variance
from flywheel.distill.credit.hierarchical import Critics, hae, normalised
from flywheel.distill.credit.methods import METHODS, Episodes, credit, make_method
from flywheel.distill.credit.ragged import Runs, accumulate
from flywheel.distill.credit.record import assign_credit
from flywheel.errors import ConfigError, LakeError
from flywheel.filters.batch import Floats
from flywheel.trajectory import Trajectory

numbers = st.floats(-5, 5, allow_subnormal=False)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """A ragged batch with rewards, values, segment starts and the values of final states."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    steps = sum(lengths)

    def floats(size: int) -> Floats:
        return np.array(draw(st.lists(numbers, min_size=size, max_size=size)))

    runs = Runs(np.concatenate([[0], np.cumsum(lengths)]))
    begins = np.array(draw(st.lists(st.booleans(), min_size=steps, max_size=steps)))
    begins[runs.first_N] = True
    return {
        "runs": runs,
        "parts": Runs.of(begins),
        "reward": floats(steps),
        "value": floats(steps),
        "final": floats(len(lengths)),
        "gamma": draw(st.floats(0, 1)),
        "lam": draw(st.floats(0, 1)),
    }


def plain_gae(reward: Floats, value: Floats, runs: Runs, gamma: float, lam: float, final: Floats) -> Floats:
    """The recursion as the paper has it, a step at a time."""
    found = np.zeros(runs.steps)
    for run in range(len(runs)):
        ahead, after = 0.0, final[run]
        for step in range(runs.starts_N1[run + 1] - 1, runs.starts_N1[run] - 1, -1):
            ahead = reward[step] + gamma * after - value[step] + gamma * lam * ahead
            found[step], after = ahead, value[step]
    return found


@given(batches())
def test_gae_is_the_papers_recursion(batch: dict[str, Any]) -> None:
    runs, lam_N = batch["runs"], np.full(len(batch["runs"]), batch["lam"])
    found = gae(batch["reward"], batch["value"], runs, batch["gamma"], lam_N, batch["final"])
    expected = plain_gae(batch["reward"], batch["value"], runs, batch["gamma"], batch["lam"], batch["final"])
    assert found == pytest.approx(expected, abs=1e-9)


@given(batches())
def test_under_lambda_one_advantage_is_return_less_value(batch: dict[str, Any]) -> None:
    runs, gamma, final = batch["runs"], batch["gamma"], batch["final"]
    whole = returns(batch["reward"], runs, gamma, final)
    found = gae(batch["reward"], batch["value"], runs, gamma, np.ones(len(runs)), final)
    assert found == pytest.approx(whole - batch["value"], abs=1e-9)


@given(batches())
def test_with_a_switch_at_every_step_the_planners_credit_is_gae(batch: dict[str, Any]) -> None:
    runs, lam_N = batch["runs"], np.full(len(batch["runs"]), batch["lam"])
    every = Runs(np.arange(runs.steps + 1))
    critics = Critics(np.zeros(runs.steps), batch["value"], np.zeros(runs.steps), batch["final"])
    found = hae(batch["reward"], runs, every, critics, batch["gamma"], lam_N, lam_N)
    flat = gae(batch["reward"], batch["value"], runs, batch["gamma"], lam_N, batch["final"])
    assert found.planner_K == pytest.approx(flat, abs=1e-9)


@given(batches())
def test_hae_is_the_papers_recursion(batch: dict[str, Any]) -> None:
    runs, parts, gamma, lam = batch["runs"], batch["parts"], batch["gamma"], batch["lam"]
    low, high_K = batch["value"], batch["value"][parts.first_N] + 1
    lam_N = np.full(len(runs), lam)
    found = hae(batch["reward"], runs, parts, Critics(low, high_K, low / 2, batch["final"]), gamma, lam_N, lam_N)
    executor, switch, planner = np.zeros(runs.steps), np.zeros(runs.steps), np.zeros(len(parts))
    for run in reversed(range(len(runs))):
        mine = [k for k in range(len(parts)) if runs.owner_T[parts.first_N[k]] == run]
        beyond, ahead = batch["final"][run], 0.0
        for k in reversed(mine):
            own = range(parts.starts_N1[k], parts.starts_N1[k + 1])
            earned = sum(gamma**place * batch["reward"][step] for place, step in enumerate(own))
            ahead = earned + gamma ** len(own) * beyond - high_K[k] + gamma ** len(own) * lam * ahead
            planner[k] = ahead
            inside, after, left = 0.0, beyond, beyond
            for step in reversed(own):
                inside = batch["reward"][step] + gamma * after - low[step] + gamma * lam * inside
                left = batch["reward"][step] + gamma * left
                executor[step], after, switch[step] = inside, low[step], left - low[step] / 2
            beyond = high_K[k]
    assert found.executor_T == pytest.approx(executor, abs=1e-8)
    assert found.planner_K == pytest.approx(planner, abs=1e-8)
    assert found.switch_T == pytest.approx(switch, abs=1e-8)


@given(batches(), st.lists(st.floats(0, 1), min_size=60, max_size=60))
def test_shaping_moves_all_returns_from_a_start_by_the_same(batch: dict[str, Any], progress: list[float]) -> None:
    """Truncated or terminated, the discounted return changes by γ^T Φ(end) − Φ(start): nothing of the policy's."""
    runs, gamma = batch["runs"], batch["gamma"]
    progress_T = np.array(progress)[: runs.steps]
    for terminated in (0.0, 1.0):
        ended_N = np.full(len(runs), terminated)
        changed = shaped(batch["reward"], progress_T, ended_N, runs, gamma)
        kept_N = progress_T[runs.last_N] * (1 - terminated)
        none_N = np.zeros(len(runs))
        moved_N = (returns(changed, runs, gamma, none_N) - returns(batch["reward"], runs, gamma, none_N))[runs.first_N]
        assert moved_N == pytest.approx(gamma**runs.length_N * kept_N, abs=1e-9)


@settings(max_examples=30)
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_trajectories_changes_nothing(batch: dict[str, Any], chance: Any) -> None:
    table = steps_table(batch)
    runs = batch["runs"]
    order = chance.sample(range(len(runs)), len(runs))
    moved = pa.concat_tables([table.slice(int(runs.first_N[run]), int(runs.length_N[run])) for run in order])
    for name in METHODS:
        method = make_method(name, {"gamma": 0.9})
        one, other = (
            credit(name, method, Episodes(given)).sort_by(
                [("trajectory_id", "ascending"), ("level", "ascending"), ("index", "ascending")]
            )
            for given in (table, moved)
        )
        assert one.drop_columns(["advantage", "return"]) == other.drop_columns(["advantage", "return"])
        assert one["advantage"].to_numpy() == pytest.approx(other["advantage"].to_numpy(), abs=1e-6)


def steps_table(batch: dict[str, Any], tasks: int = 2) -> pa.Table:
    runs = batch["runs"]
    begins = np.zeros(runs.steps, bool)
    begins[batch["parts"].first_N] = True
    terminated = np.zeros(runs.steps, bool)
    terminated[runs.last_N] = True
    return pa.table(
        {
            "trajectory_id": [f"t{run}" for run in runs.owner_T],
            "index": pa.array(np.arange(runs.steps) - runs.first_N[runs.owner_T], pa.int32()),
            "task_id": [f"task{run % tasks}" for run in runs.owner_T],
            "state_key": [f"s{step % 3}" for step in range(runs.steps)],
            "reward": np.round(batch["reward"]),
            "progress": np.abs(batch["value"]) / 5,
            "terminated": terminated,
            "begins": begins,
        }
    )


def test_a_reward_five_hundred_steps_away_moves_the_first_step() -> None:
    length = 501
    runs = Runs(np.array([0, length]))
    reward = np.zeros(length)
    reward[-1] = 1.0
    adaptive = length_adaptive(runs.length_N, 1.0, 0.5, 1.0)
    none = np.zeros(1)
    assert gae(reward, np.zeros(length), runs, 1.0, adaptive, none)[0] == pytest.approx((1 - 1 / 501) ** 500)
    assert gae(reward, np.zeros(length), runs, 1.0, np.array([0.95]), none)[0] < 1e-11
    assert length_adaptive(np.array([1, 10]), 1.0, 0.5, 1.0).tolist() == [0.5, 0.9]


def test_truncated_and_terminated_differ_by_the_value_of_the_final_state() -> None:
    table = steps_table(
        {"runs": Runs(np.array([0, 3])), "parts": Runs(np.array([0, 3])), "reward": np.ones(3), "value": np.zeros(3)}
    )
    values = {"flat": (np.zeros(3), np.array([7.0]))}
    for terminated, expected in ((True, [3.0, 2.0, 1.0]), (False, [10.0, 9.0, 8.0])):
        ended = table.set_column(6, "terminated", pa.array([False, False, terminated]))
        found = credit("returns", make_method("returns", {}), Episodes(ended, values))
        assert found["return"].to_pylist() == expected


def test_gigpo_has_its_closed_form() -> None:
    """Two episodes of a task meet in state s; the one goes on to win. A third task's lone episode says nothing."""
    table = pa.table(
        {
            "trajectory_id": ["a", "a", "b", "b", "c"],
            "index": pa.array([0, 1, 0, 1, 0], pa.int32()),
            "task_id": ["x"] * 4 + ["y"],
            "state_key": ["s", "t", "s", "", "s"],
            "reward": [0.0, 1.0, 0.0, 0.0, 1.0],
            "progress": [0.0, 1.0, 0.0, 0.0, 1.0],
            "terminated": [False, True, False, True, True],
            "begins": [True, False, True, False, True],
        }
    )
    plain = credit("gigpo", make_method("gigpo", {"scale": False, "gamma": 0.5}), Episodes(table))
    assert plain["advantage"].to_pylist() == pytest.approx([0.5 + 0.25, 0.5, -0.5 - 0.25, -0.5, 0.0])
    scaled = credit("gigpo", make_method("gigpo", {"weight": 2.0}), Episodes(table))
    assert scaled["advantage"].to_pylist() == pytest.approx([1 + 2, 1, -1 - 2, -1, 0.0])


def test_progress_is_credit_where_it_is_made() -> None:
    batch = {
        "runs": Runs(np.array([0, 3])),
        "parts": Runs(np.array([0, 3])),
        "reward": np.zeros(3),
        "value": np.array([0.0, 2.5, 5.0]),
    }
    found = credit("progress", make_method("progress", {}), Episodes(steps_table(batch)))
    assert found["advantage"].to_pylist() == pytest.approx([0.0, 0.5, 0.5])
    critic = Episodes(steps_table(batch), {"flat": (np.array([0.2, 0.3, 0.9]), np.array([0.9]))})
    found = credit("progress", make_method("progress", {}), critic)
    assert found["advantage"].to_pylist() == pytest.approx([0.1, 0.6, 0.1])


def test_a_recurrence_over_a_million_steps_loses_no_precision() -> None:
    runs = Runs(np.array([0, 1_000_000]))
    found = accumulate(np.ones(1_000_000), runs.within_T(np.ones(1_000_000)))
    assert found[0] == 1_000_000
    assert found[-1] == 1


def test_normalising_knows_groups_that_do_not_vary() -> None:
    found = normalised(np.array([1.0, 3.0, 0.1 + 0.2, 0.3]), np.array([0, 0, 1, 1]))
    assert found.tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert explained_variance(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])) == 1.0
    assert explained_variance(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])) == 0.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [("gea", {}, "known: returns, gae"), ("gae", {"gama": 1}, "did you mean 'gamma'?"), ("gae", {"lam": 2}, "lam: ")],
)
def test_mistakes_are_one_line(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_method(name, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credit_is_appended_once_by_method_and_arguments(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    gae_near, gae_far = make_method("gae", {"lam": 0.5}), make_method("gae", {})
    dry = assign_credit(lake, "gae", gae_near, "true", dry_run=True)
    assert (dry.trajectories, dry.new) == (len(golden), 0)
    steps = sum(trajectory.length for trajectory in golden)
    assert dry.diagnostics.steps == steps
    assert sum(dry.diagnostics.deciles["flat"]) == pytest.approx(1)
    for _ in range(2):
        assert assign_credit(lake, "gae", gae_near, "true").trajectories == len(golden)
    assign_credit(lake, "gae", gae_far, "true")
    assign_credit(lake, "hae", make_method("hae", {}), "success")
    found = lake.sql(
        'select method, arguments, level, count(*) as n, min("index") as first from credits group by all order by all'
    ).to_pylist()
    assert [(row["method"], row["level"]) for row in found] == [
        ("gae", "flat"),
        ("gae", "flat"),
        ("hae", "executor"),
        ("hae", "planner"),
        ("hae", "switch"),
    ]
    assert {row["n"] for row in found if row["level"] != "planner"} == {steps}
    assert json.loads(found[0]["arguments"])["lam"] in (0.5, None)
    whole = lake.sql("""select max(abs("return" - total_reward)) as off from credits join trajectories
                        using (trajectory_id) where method = 'gae' and "index" = 0""").to_pylist()
    assert whole == [{"off": pytest.approx(0, abs=1e-9)}]
    with pytest.raises(LakeError, match="nothing to give credit"):
        assign_credit(lake, "gae", gae_far, "length < 0")


def test_the_command_shows_where_credit_goes(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    call = ["credit", "gae", "--where", "true", "--data-dir", str(lake.root), "--arg", "gamma=0.9"]
    told = CliRunner().invoke(app, [*call, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["new"] == len(golden)
    assert "flat" in CliRunner().invoke(app, call).stdout
    wrong = CliRunner().invoke(app, [*call, "--arg", "gamma"])
    assert isinstance(wrong.exception, ConfigError)
