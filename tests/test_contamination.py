"""The wall between training and held-out tasks: decided before play, and nothing is built that leaks through it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.agents.scripted import Expert
from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.splits import assign, units_of
from flywheel.datasets.versions.contamination import find_contamination, refuse_contamination
from flywheel.datasets.versions.versions import create
from flywheel.distill.data.corpus import load_corpus
from flywheel.environments.protocol import World
from flywheel.errors import ContaminationError
from flywheel.filters.curate import curate
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import play as play_into
from flywheel.trajectory import Split, Task, Trajectory, trajectory_id
from tests.conftest import Play

ROOT = Path(__file__).parents[1]


def passed_off(one: Trajectory, seed: int) -> Trajectory:
    """A held-out episode as a training episode of another seed."""
    task = Task(one.environment, one.parameters, Split.TRAIN, seed, one.instruction)
    return replace(
        one,
        trajectory_id=trajectory_id(task, one.policy_id, one.policy_version, one.purpose, one.attempt),
        split=Split.TRAIN,
        seed=seed,
        task_id=task.task_id,
        task_group=task.group,
        steps=tuple(replace(step, seconds=2 * step.seconds) for step in one.steps),
    )


@pytest.fixture
def filled(smoke: Config, lake: Lake, world: World, play: Play) -> Lake:
    """Honest training and test episodes of the expert, curated."""
    lake.append([*play(Expert(world), 40), *play(Expert(world), 20, split=Split.TEST)], "honest")
    curate(smoke, lake)
    return lake


def train_ids(lake: Lake) -> list[str]:
    found: list[str] = lake.sql("select trajectory_id from trajectories where split = 'train'")[
        "trajectory_id"
    ].to_pylist()
    return found


def test_honest_splits_do_not_leak(filled: Lake, smoke: Config) -> None:
    assert find_contamination(filled, train_ids(filled), smoke.curate.leak) == []
    assert load_corpus(smoke, filled, 1).routes
    assert create(filled, "train", "split = 'train'").trajectories == 40


def test_a_held_out_task_in_training_is_refused_by_its_words_and_by_its_playing(
    filled: Lake, smoke: Config, world: World, play: Play
) -> None:
    test = play(Expert(world), 1, split=Split.TEST)[0]
    leaked = passed_off(test, 500)
    filled.append([leaked], "leak")
    curate(load(ROOT / "configs" / "smoke.toml", ['curate.verifiers=["outcome"]']), filled)
    found = find_contamination(filled, train_ids(filled), smoke.curate.leak)
    assert {one.what for one in found} == {"words", "playing"}
    assert {one.training for one in found} == {leaked.trajectory_id}
    assert test.trajectory_id in {one.held_out for one in found}
    before = filled.snapshot()
    with pytest.raises(ContaminationError, match=rf"training episode {leaked.trajectory_id} gives the (words|playing)"):
        refuse_contamination(filled, train_ids(filled), smoke.curate.leak)
    with pytest.raises(ContaminationError, match="flywheel lake revoke"):
        create(filled, "leaking", "split = 'train'")
    assert filled.sql("select count(*) as n from dataset_versions").to_pylist() == [{"n": 0}]
    assert filled.snapshot() == before


def test_the_corpus_of_a_student_is_refused_too(filled: Lake, smoke: Config, world: World, play: Play) -> None:
    test = play(Expert(world), 1, split=Split.TEST)[0]
    filled.append([passed_off(test, 500)], "leak")
    curate(load(ROOT / "configs" / "smoke.toml", ['curate.verifiers=["outcome"]']), filled)
    with pytest.raises(ContaminationError, match="gives the"):
        load_corpus(smoke, filled, 1)


def test_splits_are_recorded_before_play_and_cannot_change(smoke: Config, lake: Lake, world: World) -> None:
    tasks = world.tasks(Split.DEV, 0, 2)
    origin = Origin(1, "evaluate", "test")
    play_into(smoke, lake, world, Expert(world), [Job(task) for task in tasks], origin)
    decided = lake.sql("select unit, split from assignments order by unit").to_pylist()
    assert decided == [{"unit": units_of(task)["task"], "split": "dev"} for task in tasks]
    moved = replace(tasks[0], split=Split.TRAIN)
    with pytest.raises(ContaminationError, match="belongs to dev and cannot serve train"):
        play_into(smoke, lake, world, Expert(world), [Job(moved)], Origin(1, "collect", "test"))
    assert lake.sql("select count(*) as n from trajectories").to_pylist() == [{"n": 2}]


def test_whole_templates_and_environments_can_be_walled_off(lake: Lake, world: World) -> None:
    train, dev = world.tasks(Split.TRAIN, 0, 2), world.tasks(Split.DEV, 0, 1)
    assign(lake, train, "template")
    with pytest.raises(ContaminationError, match=r"cookingworld@[0-9a-f]{8} belongs to train"):
        assign(lake, dev, "template")
    other = replace(dev[0], parameters='{"numLocations":4}')
    assign(lake, [other], "template")
    with pytest.raises(ContaminationError, match="cannot serve"):
        assign(lake, [*train, *dev], "environment")
    assert lake.sql("select count(*) as n from assignments").to_pylist() == [{"n": 2}]
    with pytest.raises(ContaminationError, match=r"cookingworld@[0-9a-f]{8} belongs to train and cannot serve dev"):
        assign(lake, dev)
    with pytest.raises(ContaminationError, match="cannot serve dev"):
        assign(lake, [*train[:1], *dev])
    with pytest.raises(ContaminationError, match="belongs to train and cannot serve dev"):
        assign(lake, dev, "environment")
    assign(lake, train)
    assert lake.sql("select count(*) as n from assignments").to_pylist() == [{"n": 4}]


def test_a_whole_cannot_swallow_a_part_of_another_side(lake: Lake, world: World) -> None:
    assign(lake, world.tasks(Split.DEV, 0, 1))
    for by in ("template", "environment"):
        with pytest.raises(ContaminationError, match=r"/\d+ belongs to dev and cannot serve train"):
            assign(lake, world.tasks(Split.TRAIN, 0, 1), by)  # type: ignore[arg-type]
    assert lake.sql("select count(*) as n from assignments").to_pylist() == [{"n": 1}]


def test_an_imported_task_keeps_its_side(lake: Lake, tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "Sort the list."}, {"role": "assistant", "content": "Done."}]}
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    call = ["import", str(tmp_path / "one.jsonl"), "--format", "chat", "--data-dir", str(lake.root), "--json"]
    runner = CliRunner()
    assert json.loads(runner.invoke(app, [*call, "--split", "dev"]).stdout)["trajectories"] == 1
    for more in ([], ["--split-by", "environment"]):
        refused = runner.invoke(app, [*call, "--split", "train", *more])
        assert refused.exit_code == 4
        assert "cannot serve train" in json.loads(refused.stdout)["reasons"][0]
    assert lake.sql("select split from trajectories").to_pylist() == [{"split": "dev"}]
