"""Segmentation by several sources: each covers every step, they can be compared, and a bad reading is rejected."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.agents.scripted import Expert
from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.credit.methods import make_method
from flywheel.distill.credit.record import assign_credit
from flywheel.distill.stage import distill
from flywheel.distill.subgoals.segmentation import (
    CHANGES,
    accords,
    boundary_f1,
    by_changes,
    checked,
    mean_overlap,
    segment_lake,
)
from flywheel.environments.protocol import World
from flywheel.errors import LakeError, TrainingError
from flywheel.filters.curate import curate
from flywheel.filters.segments import by_plan
from flywheel.filters.segments import segment as by_milestones
from flywheel.trajectory import Segment, Trajectory
from tests.conftest import Play
from tests.servers import chat_server

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"


def planned(one: Trajectory) -> Trajectory:
    """The episode as if a planner had ordered its milestones."""
    parts = by_milestones(one)
    steps = list(one.steps)
    for part in parts:
        for at in range(part.start, part.end):
            steps[at] = replace(steps[at], subgoal=part.subgoal, new_subgoal=at == part.start)
    return replace(one, steps=tuple(steps))


def shape(parts: list[Segment]) -> list[tuple[int, int, str]]:
    return [(part.start, part.end, part.subgoal) for part in parts]


def test_every_source_covers_every_step_in_order(golden: list[Trajectory], noisy: list[Trajectory]) -> None:
    for trajectory in [*golden, *noisy]:
        for parts in (by_changes(trajectory), by_milestones(trajectory), by_plan(planned(trajectory))):
            assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
            assert parts[-1].end == trajectory.length
            assert sum(part.reward for part in parts) == pytest.approx(trajectory.total_reward)
            assert all(part.completed for part in parts[:-1])


def test_the_lived_plan_is_what_was_ordered_and_places_cut_without_labels(golden: list[Trajectory]) -> None:
    one = max(golden, key=lambda each: len({step.location for step in each.steps}))
    assert shape(by_plan(planned(one))) == shape(by_milestones(one))
    assert by_plan(one) == []
    parts = by_changes(one)
    assert len(parts) > 1
    for part in parts:
        assert len({step.location for step in one.steps[part.start : part.end]}) == 1
        assert part.subgoal == one.steps[part.end - 1].action
    blind = replace(one, steps=tuple(replace(step, location="") for step in one.steps))
    assert len(by_changes(blind)) > 1


cuts = st.sets(st.integers(1, 11), max_size=6).map(lambda inner: [0, *sorted(inner), 12])


def parts_of(cut: list[int]) -> list[Segment]:
    return [Segment("t", n, a, b, "x", True, 0.0, "s") for n, (a, b) in enumerate(pairwise(cut))]


@given(cuts, cuts)
def test_agreement_is_symmetric_and_full_only_with_oneself(one: list[int], other: list[int]) -> None:
    a, b = parts_of(one), parts_of(other)
    assert boundary_f1(a, a) == mean_overlap(a, a) == 1
    assert boundary_f1(a, b) == pytest.approx(boundary_f1(b, a))
    assert mean_overlap(a, b) == pytest.approx(mean_overlap(b, a))
    assert (mean_overlap(a, b) == pytest.approx(1)) == (one == other)


def test_agreement_has_its_closed_form() -> None:
    a, b = parts_of([0, 4, 12]), parts_of([0, 5, 9, 12])
    assert boundary_f1(a, b) == pytest.approx(2 / 3)
    assert mean_overlap(a, b) == pytest.approx((4 * 4 / 5 + 1 * 1 / 12 + 4 * 4 / 8 + 3 * 3 / 8) / 12)


def test_sources_stand_side_by_side_and_a_student_names_its_own(
    smoke: Config, lake: Lake, golden: list[Trajectory]
) -> None:
    lake.append(golden, "golden")
    curate(smoke, lake)
    by_places = load(SMOKE, [f"data_dir={lake.root}", f"train.segments={CHANGES}"])
    with pytest.raises(TrainingError, match=r"have no segments of changes/1, .* run: flywheel segment changes"):
        distill(by_places, lake, "hierarchical", 1)
    told = segment_lake(lake, CHANGES, by_changes, "true")
    assert told["trajectories"] == len(golden)
    assert segment_lake(lake, CHANGES, by_changes, "true")["trajectories"] == 0
    (accord,) = accords(lake)
    assert {accord.one, accord.other} == {"milestones/2", CHANGES}
    assert accord.trajectories == len(golden)
    assert 0 < accord.overlap < 1
    assert lake.sql("select distinct source from segments").to_pylist() == [{"source": "milestones/2"}]
    one, other = distill(smoke, lake, "hierarchical", 1), distill(by_places, lake, "hierarchical", 1)
    assert one.policy_id != other.policy_id
    for source in ("milestones/2", CHANGES):
        assign_credit(lake, "hae", make_method("hae", {"segments": source}), "true")
        decisions = lake.sql(
            f"""select count(*) as n from credits where level = 'planner' and arguments like '%{source}%'"""
        ).to_pylist()
        segments = lake.sql(f"select count(*) as n from segmentations where source = '{source}'").to_pylist()
        assert decisions == segments


def test_a_reading_that_does_not_cover_the_episode_is_refused(golden: list[Trajectory]) -> None:
    one = golden[0]
    last = one.length - 1
    assert shape(checked(one, [(0, 1, "look"), (2, last, "cook")], "s")) == [(0, 2, "look"), (2, one.length, "cook")]
    for parts in ([(0, last - 1, "x")], [(1, last, "x")], [(0, 3, "x"), (3, last, "y")], [(0, last, " ")], []):
        with pytest.raises(LakeError):
            checked(one, parts, "s")


def test_a_chat_model_labels_finished_episodes_and_bad_answers_are_thrown_away(
    lake: Lake, world: World, play: Play
) -> None:
    """A rule in the model's place: its first answers have a hole, and one episode it never gets."""
    episodes = sorted(play(Expert(world), 3), key=lambda trajectory: trajectory.seed)
    lake.append(episodes, "golden")
    hopeless = episodes[2].length
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any], key: str) -> tuple[int, str]:
        asked.append(request)
        length = int(request["messages"][1]["content"].partition("# Record of ")[2].partition(" ")[0])
        hole = request["seed"] == 0 or length == hopeless
        parts = [{"first": 0, "last": 2, "subgoal": "find out"}]
        parts += [{"first": 4 if hole else 3, "last": length - 1, "subgoal": "cook the meal"}]
        return 200, json.dumps({"parts": parts})

    with chat_server(answer) as url:
        call = ["segment", "chat", "--where", "true", "--base-url", url, "--model", "rule"]
        call += ["--data-dir", str(lake.root), "--json"]
        assert json.loads(CliRunner().invoke(app, [*call, "--dry-run"]).stdout)["trajectories"] == 3
        assert asked == []
        told = CliRunner().invoke(app, call)
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    right = [episode for episode in episodes if episode.length != hopeless]
    assert (found["trajectories"], found["uncut"]) == (len(right), 3 - len(right))
    assert len(found["rejected"]) == len(right) + 3 * (3 - len(right))
    assert all("should begin at step 3" in reason for reason in found["rejected"])
    rows = lake.sql("select distinct source, subgoal from segmentations order by subgoal").to_pylist()
    assert rows == [{"source": "chat/1 rule", "subgoal": name} for name in ("cook the meal", "find out")]
    words = asked[0]["messages"][1]["content"]
    assert all(step.thought not in words for episode in episodes for step in episode.steps if step.thought)
