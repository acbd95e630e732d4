"""Tasks from files: any JSON as data, splits by group before the first episode, each row at fault told by its place."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.collect.stage import collect
from flywheel.config.root import Config, make
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.splits import assign
from flywheel.environments import catalog
from flywheel.environments.protocol import Observation, Transition
from flywheel.environments.task_lists import read_tasks
from flywheel.errors import ConfigError, ContaminationError
from flywheel.evaluation.evaluate import held_out_tasks
from flywheel.filters.curate import curate
from flywheel.flows.doctor import diagnose
from flywheel.policies.registry import RANDOM
from flywheel.rollouts.tasks import task_source
from flywheel.trajectory import Split, Task, task_of

SHARES = {Split.DEV: 0.2, Split.TEST: 0.2}
NAME = "tests.test_tasks"
PARAMETERS = '{"topics":["weather",{"mood":"calm"}]}'


class Opposite:
    """Answers with the word that the task's data names: say it."""

    def reset(self, task: Task) -> Observation:
        self.word = json.loads(task.data)["words"][0]
        return Observation("Say the word.", valid_actions=("stay", self.word))

    def step(self, action: str) -> Transition:
        solved = action == self.word
        seen = Observation("Said.", feedback=f"You said {action}.", valid_actions=("stay", self.word))
        return Transition(seen, float(solved), float(solved), terminated=solved, success=solved)


class Opposites:
    """Makes no tasks of its own."""

    def environments(self, count: int) -> Sequence[Opposite]:
        return [Opposite() for _ in range(count)]


@contextmanager
def open_world(parameters: str) -> Iterator[Opposites]:
    assert json.loads(parameters)["topics"] == ["weather", {"mood": "calm"}]
    yield Opposites()


def rows(count: int = 12, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"t{number}", "instruction": "Say it.", "data": {"words": [f"word {number}"]}, **more}
        for number in range(count)
    ]


def written(path: Path, tasks: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(task)}\n" for task in tasks), encoding="utf-8")
    return path


def read(path: Path, columns: dict[str, str] | None = None) -> dict[Split, tuple[Task, ...]]:
    return read_tasks(str(path), "e", "{}", columns or {}, SHARES)


def config_of(folder: Path, source: Path, **changes: Any) -> Config:
    collecting = {"episodes": 8, "later_episodes": 4, "teachers": {"random": 1}, "champion_share": 0}
    raw = {
        "name": "tasks",
        "data_dir": str(folder / "lake"),
        "environment": {
            "name": NAME,
            "parameters": {"topics": ["weather", {"mood": "calm"}]},
            "max_steps": 6,
            "parallel": 4,
        },
        "collect": collecting,
        "curate": {"verifiers": ["outcome", "integrity", "replay"], "workers": 1},
        "tasks": {"source": str(source), **changes},
    }
    return make(raw)


def test_every_kind_of_file_says_the_same(tmp_path: Path) -> None:
    tasks = rows(6, split="train")
    lines = read(written(tmp_path / "a.jsonl", tasks))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "instruction", "data", "split"])
        writer.writeheader()
        writer.writerows({**task, "data": json.dumps(task["data"])} for task in tasks)
    pq.write_table(pa.Table.from_pylist(tasks), tmp_path / "a.parquet")
    named = [{key: value for key, value in task.items() if key != "split"} for task in tasks]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(named)}).save_to_disk(str(tmp_path / "folder"))
    for other in ("a.csv", "a.parquet", "folder"):
        assert read(tmp_path / other) == lines
    assert [task.name for task in lines[Split.TRAIN]] == [task["id"] for task in tasks]
    assert json.loads(lines[Split.TRAIN][3].data) == {"words": ["word 3"]}


def test_columns_may_be_called_otherwise_and_the_rest_is_data(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"key": 7, "question": "1 + 1?", "answer": "2", "split": "validation"}])
    (task,) = read(path, {"id": "key", "instruction": "question"})[Split.DEV]
    assert (task.name, task.instruction, json.loads(task.data)) == ("7", "1 + 1?", {"answer": "2"})
    assert (task.group, task.task_id.partition("@")[0]) == ("e#7", "e#7")


def test_a_corrected_row_is_another_task_of_the_same_group(tmp_path: Path) -> None:
    """And so is a row of another list that happens to have the same id."""
    first, second = ({"id": "0", "instruction": "1 + 1?", "split": "train", "data": answer} for answer in (3, 2))
    (wrong,), (right,) = (read(written(tmp_path / "a.jsonl", [row]))[Split.TRAIN] for row in (first, second))
    assert wrong.task_id != right.task_id
    assert wrong.group == right.group


def test_files_of_a_folder_that_name_no_split_are_refused_beside_those_that_do(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", rows(2))
    written(tmp_path / "test.jsonl", [{**row, "id": f"x{row['id']}", "split": None} for row in rows(4)])
    assert len(read(tmp_path)[Split.TEST]) == 4
    written(tmp_path / "test_hard.jsonl", [])
    with pytest.raises(ConfigError, match=r"test_hard.jsonl names no split, as other files"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"instruction": "x"}, "a.jsonl:2: a task needs id"),
        ({"id": "x"}, "a.jsonl:2: a task needs instruction"),
        ({"id": ["x"], "instruction": "x"}, "a task needs id, as text"),
        ([{"id": "x", "instruction": "x"}], "a task is an object with id and instruction, not a list"),
        ({"id": "t0", "instruction": "x"}, "the id 't0' stands at .*a.jsonl:1 already"),
        ({"id": "x", "instruction": "x", "split": "held-out"}, "split is 'held-out'; known: train, dev"),
        ({"id": "x", "instruction": "x", "group": "g", "split": "test"}, "group 'g' lies in test here and in train"),
        ({"id": "x", "instruction": "x", "seed": "many"}, "seed is 'many'"),
        ({"id": "x", "instruction": "x", "seed": 2**63}, "no whole number from 0 on"),
        ({"id": "x", "instruction": "x", "seed": 2.5}, "no whole number from 0 on"),
        ({"id": "x", "instruction": "x", "data": {}, "colour": "red"}, "unknown field 'colour'; put it into data"),
        ({"id": "x", "instruction": "x", "data": float("nan")}, "a.jsonl:2 is no JSON: NaN"),
    ],
)
def test_a_row_at_fault_is_told_by_its_place(tmp_path: Path, bad: Any, says: str) -> None:
    path = written(tmp_path / "a.jsonl", [*rows(1, group="g", split="train"), bad])
    with pytest.raises(ConfigError, match=says):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, "no file of tasks"),
        ("a.txt", b"x", "tasks are read from .jsonl"),
        ("a.parquet", b"x", "cannot be read as parquet"),
        ("a.jsonl", b'{"id": "\xff"}', "cannot be read as jsonl"),
        ("a.jsonl", b"", "there is no task in it"),
        ("a.csv", b"id,instruction\na,b,c\n", "more fields than there are columns"),
    ],
)
def test_a_file_at_fault_is_told(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read(tmp_path / name)


@given(names=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=30, unique=True), more=st.text())
def test_a_list_that_grows_moves_no_task(tmp_path_factory: pytest.TempPathFactory, names: list[str], more: str) -> None:
    path = tmp_path_factory.mktemp("tasks") / "a.jsonl"
    tasks = [{"id": name, "instruction": "x", "group": f"g{len(name)}"} for name in names]
    before = read(written(path, tasks))
    after = read(written(path, [{"id": f"new {more}", "instruction": "x"}, *tasks]))
    assert sorted(name for split in before.values() for name in (task.name for task in split)) == sorted(names)
    for split in Split:
        assert set(before[split]) <= set(after[split])
    units = [{task.group for task in split} for split in before.values()]
    assert not units[0] & units[1] and not units[1] & units[2] and not units[0] & units[2]


def test_an_environment_plays_a_list_and_the_lake_knows_each_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two iterations of 8 and 4 episodes on a list of 9: three are missing, and it is said."""
    tasks = [
        *rows(9, split="train", family="easy"),
        *({**task, "id": f"d{task['id']}", "split": "dev"} for task in rows(3)),
    ]
    config = config_of(tmp_path, written(tmp_path / "a.jsonl", tasks))
    assert [finding.detail for finding in diagnose(config) if not finding.ok] == []
    with Lake.of(config, create=True) as lake:
        collect(config, lake, 1, RANDOM)
        with caplog.at_level(logging.WARNING):
            collect(config, lake, 2, RANDOM)
        assert "the list has 9 training tasks: 1 of 4 episodes are played" in caplog.text
        curate(config, lake)
        played = lake.sql("select * from trajectories order by task_name").to_pylist()
        assert [row["task_name"] for row in played] == [f"t{number}" for number in range(9)]
        assert {row["family"] for row in played} == {"easy"}
        assert {row["verified"] for row in played if row["success"]} == {True}
        tasks_by_split = read_tasks(config.tasks.source, NAME, played[0]["parameters"], {}, {})
        assert [task_of(row) for row in played] == list(tasks_by_split[Split.TRAIN])
        with pytest.raises(ConfigError, match="the list's 9 training tasks are played"):
            collect(config, lake, 4, RANDOM)
        with catalog.open_world(NAME, played[0]["parameters"]) as world:
            gates = [held_out_tasks(config, world, Split.DEV, iteration) for iteration in (1, 2)]
        assert {task.name for task in gates[0]} == {task.name for task in gates[1]} == {"dt0", "dt1", "dt2"}


def test_what_the_lake_redacts_of_a_task_makes_it_no_other(tmp_path: Path) -> None:
    """An address in its data is replaced; the episode stays its own, and is not replayed."""
    rows_of_one = [{**rows(1)[0], "data": {"words": ["word"], "mail": "ada@example.org"}, "split": "train"}]
    config = config_of(tmp_path, written(tmp_path / "a.jsonl", rows_of_one))
    with Lake.of(config, create=True) as lake:
        collect(config, lake, 1, RANDOM)
        curate(config, lake)
        (run,) = lake.sql("select task_data, trajectory_id, route from trajectories").to_pylist()
        (integrity,) = lake.sql("select passed, integrity from verdicts where verifier = 'integrity'").to_pylist()
    assert "REDACTED" in run["task_data"]
    assert integrity["integrity"] == 1
    assert run["route"] != "quarantine"


def test_a_list_is_played_again_where_the_config_says_so(tmp_path: Path) -> None:
    config = config_of(tmp_path, written(tmp_path / "a.jsonl", rows(3, split="train")), again=True)
    with catalog.open_world(NAME, PARAMETERS) as world:
        jobs = task_source(config, world).training_jobs(2, 5)
    assert [(job.task.name, job.attempt) for job in jobs] == [("t2", 0), ("t0", 1), ("t1", 1), ("t2", 1), ("t0", 2)]


def test_a_list_that_contradicts_the_lake_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    """Dev tasks collide too, although training comes first."""
    config = config_of(tmp_path, written(tmp_path / "a.jsonl", rows(4, split="train")))
    with (
        Lake.of(config, create=True) as lake,
        catalog.open_world(NAME, PARAMETERS) as world,
    ):
        listed = task_source(config, world).listed
        assert listed is not None
        assign(lake, listed[Split.TRAIN])
        other = [*rows(3, split="train"), {**rows(4)[3], "split": "dev"}]
        written(tmp_path / "a.jsonl", other)
        with pytest.raises(ContaminationError, match="t3 belongs to train and cannot serve dev"):
            collect(config, lake, 1, RANDOM)
        assert lake.sql("select count(*) as n from trajectories").to_pylist() == [{"n": 0}]
    assert any("t3" in finding.detail for finding in diagnose(config) if not finding.ok)


def test_an_environment_without_tasks_asks_for_a_list(tmp_path: Path) -> None:
    config = config_of(tmp_path, Path())
    with catalog.open_world(NAME, PARAMETERS) as world:
        bare = config.model_copy(update={"tasks": config.tasks.model_copy(update={"source": ""})})
        with pytest.raises(ConfigError, match="makes no tasks of its own; list some"):
            task_source(bare, world).draw(Split.TRAIN, 0, 1)


def test_env_check_takes_a_list(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows(6))
    parameters = ["--param", 'topics=["weather", {"mood": "calm"}]']
    result = CliRunner().invoke(app, ["env", "check", NAME, *parameters, "--tasks", str(path)])
    assert result.exit_code == 0, result.output
