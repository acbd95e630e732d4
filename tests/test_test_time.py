"""Test-time scaling: each means is measured against the plain evaluation of the same policy on the same tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.errors import ConfigError, PolicyError
from flywheel.evaluation import best_of_n, test_time
from flywheel.filters.curate import curate
from flywheel.policies.registry import crown
from flywheel.trajectory import Split, Trajectory
from tests.servers import chat_server

ROOT = Path(__file__).parents[1]
FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lake_with_student(
    tmp_path_factory: pytest.TempPathFactory, golden: list[Trajectory]
) -> Iterator[tuple[Config, Lake]]:
    settings = load(ROOT / "configs" / "smoke.toml", [f"data_dir={tmp_path_factory.mktemp('scaled') / 'lake'}"])
    lake = Lake.of(settings, create=True)
    lake.append(golden, "expert")
    curate(settings, lake)
    crown(lake, distill(settings, lake, "hierarchical", 1).policy_id, "by hand")
    yield settings, lake
    lake.close()


def test_best_of_n_by_a_perfect_verifier_is_any_attempt(lake_with_student: tuple[Config, Lake]) -> None:
    settings, lake = lake_with_student
    gain = test_time.best_of(settings, lake, "champion", Split.DEV, 1, 3, "privileged", 1.0)
    assert gain.tasks == settings.evaluate.dev_tasks
    assert gain.scaled.value == gain.notes["any attempt"] >= gain.notes["one attempt"]
    assert 1.5 < gain.scaled_cost.steps / gain.plain_cost.steps < 12
    before = lake.snapshot()
    assert test_time.best_of(settings, lake, "champion", Split.DEV, 1, 3, "privileged", 1.0) == gain
    assert lake.snapshot() == before, "the second time nothing is played"


def test_what_cannot_be_measured_is_told_before_anything_is_played(lake_with_student: tuple[Config, Lake]) -> None:
    settings, lake = lake_with_student
    before = lake.snapshot()
    with pytest.raises(ConfigError, match="no verifier 'nonsense'; use value, or one of"):
        test_time.best_of(settings, lake, "champion", Split.TEST, 1, 3, "nonsense", 1.0)
    with pytest.raises(PolicyError, match="'expert' is not registered"):
        test_time.best_of(settings, lake, "expert", Split.TEST, 1, 3, "value", 1.0)
    assert lake.snapshot() == before


def test_attempts_differ_and_each_can_be_played_again(lake_with_student: tuple[Config, Lake]) -> None:
    _, lake = lake_with_student
    rows = lake.sql(
        """select task_id, attempt, list(action order by "index") as actions
           from steps join trajectories using (trajectory_id) where purpose = 'evaluate+best' group by all"""
    ).to_pylist()
    by_task: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        by_task.setdefault(row["task_id"], set()).add(tuple(row["actions"]))
    assert max(map(len, by_task.values())) > 1


def test_a_value_head_learns_from_training_tasks_alone(
    lake_with_student: tuple[Config, Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, lake = lake_with_student
    monkeypatch.setattr(best_of_n, "FIT_TASKS", 12)
    gain = test_time.best_of(settings, lake, "champion", Split.DEV, 1, 3, "value", 1.0)
    assert gain.notes["fitted on"] == 12
    assert gain.notes["one attempt"] - 1e-9 <= gain.notes["any attempt"]
    splits = lake.sql(f"select distinct split from trajectories where purpose = '{best_of_n.FIT_PURPOSE}'")
    assert splits["split"].to_pylist() == ["train"]


def test_a_students_own_auditor_learns_from_training_tasks_and_refuses(
    lake_with_student: tuple[Config, Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, lake = lake_with_student
    monkeypatch.setattr(best_of_n, "FIT_TASKS", 12)
    hasty = {"wrong_action": 0.0, "early_stop": 0.3}
    mistaken = settings.collect.model_copy(update={"mistakes": settings.collect.mistakes.model_copy(update=hasty)})
    config = settings.model_copy(update={"collect": mistaken})
    gain = test_time.audited(config, lake, "noisy_expert", Split.DEV, 1, "value")
    assert gain.notes["rulings of this run"] >= gain.notes["steps after a refusal"] > 0
    assert gain.notes["fitted on"] > 12 and gain.notes["of them unreadable"] == 0
    assert gain.scaled_cost.tokens > gain.plain_cost.tokens == 0
    again = test_time.audited(config, lake, "noisy_expert", Split.DEV, 1, "value")
    assert again.scaled_cost == gain.scaled_cost, "what rulings took is in the lake"


def test_more_steps_are_another_budget_and_leave_the_plain_evaluation_alone(
    lake_with_student: tuple[Config, Lake],
) -> None:
    settings, lake = lake_with_student
    plain = lake.sql("select count(*) as n from trajectories where purpose = 'evaluate'").to_pylist()
    gain = test_time.longer(settings, lake, "noisy_expert", Split.DEV, 1, 6)
    assert gain.scaled.value <= gain.plain.value
    longest = lake.sql("select max(length) as n from trajectories where purpose = 'evaluate+steps 6'").to_pylist()
    assert longest == [{"n": 6}]
    assert lake.sql("select count(*) as n from trajectories where purpose = 'evaluate'").to_pylist() != plain


def test_the_command_tells_gain_and_cost(lake_with_student: tuple[Config, Lake]) -> None:
    settings, lake = lake_with_student
    words = json.dumps({"solved": False, "reasoning": "not yet"})

    def answer(request: dict[str, Any], key: str) -> tuple[int, str]:
        return 200, words

    with chat_server(answer) as url:
        sets = [
            f"data_dir={lake.root}",
            f"auditor.base_url={url}",
            "auditor.model=m",
            "collect.mistakes.early_stop=0.2",
        ]
        command = [
            FLYWHEEL,
            "evaluate",
            str(ROOT / "configs" / "smoke.toml"),
            "noisy_expert",
            "--split",
            "dev",
            "--auditor",
            "chat",
        ]
        told = subprocess.run(
            [*command, *(part for one in sets for part in ("--set", one)), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert told.returncode == 0, told.stderr
    gain = json.loads(told.stdout)
    assert gain["what"] == "auditor: chat" and gain["tasks"] == settings.evaluate.dev_tasks
    assert gain["notes"]["rulings of this run"] > 0 == gain["notes"]["of them unreadable"]
    assert gain["notes"]["steps after a refusal"] > 0
    assert gain["gain"]["low"] <= gain["gain"]["value"] <= gain["gain"]["high"]
    refused = subprocess.run([*command, "--best-of", "2"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "one at a time" in refused.stderr
