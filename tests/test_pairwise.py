"""A pairwise judge: asked in both orders, held against people.

Server and protocol are real; the model, which would cost money, is a rule that reads both records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.datasets.lake.annotations import Kind, annotate
from flywheel.datasets.lake.lake import Lake
from flywheel.trajectory import StopReason, Trajectory, trajectory_id
from tests.servers import chat_server

Rule = Callable[[str, str], str]


def steps(record: str) -> int:
    return len(re.findall(r"\] action:", record))


def longer(one: str, other: str) -> str:
    """More steps are better."""
    return "neither" if steps(one) == steps(other) else "A" if steps(one) > steps(other) else "B"


@contextmanager
def judge(rule: Rule) -> Iterator[str]:
    def answer(request: dict[str, Any], key: str) -> tuple[int, str]:
        first, _, second = request["messages"][1]["content"].partition("# Record A\n")[2].partition("\n\n# Record B\n")
        said = rule(first, second)
        return 200, json.dumps({"reasoning": "a rule", "better": said}) if said else "I cannot say."

    with chat_server(answer) as url:
        yield url


@pytest.fixture
def played(lake: Lake, golden: list[Trajectory]) -> Lake:
    """Two policies on six tasks: the first solves all, the second gives up half-way in four of them."""
    runs = []
    for place, episode in enumerate(golden[:6]):
        for policy in ("whole", "half"):
            half = policy == "half" and place < 4
            runs.append(
                replace(
                    episode,
                    policy_id=policy,
                    purpose="evaluate",
                    trajectory_id=trajectory_id(episode.task, policy, "1", "evaluate", 0),
                    steps=episode.steps[: episode.length // 2] if half else episode.steps,
                    length=episode.length // 2 if half else episode.length,
                    stop_reason=StopReason.GAVE_UP if half else episode.stop_reason,
                    success=not half,
                )
            )
    lake.append(runs, "evaluated")
    return lake


def judged(lake: Lake, rule: Rule) -> dict[str, Any]:
    with judge(rule) as url:
        arguments = ["compare", "whole", "half", "--where", "true", "--judge", url, "--judge-model", "rule", "--json"]
        done = CliRunner().invoke(app, [*arguments, "--data-dir", str(lake.root)])
    assert done.exit_code == 0, (done.output, done.exception)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_what_both_orders_prefer_counts(played: Lake) -> None:
    told = judged(played, longer)
    assert (told["pairs"], told["first"], told["second"], told["neither"], told["swayed"]) == (6, 4, 0, 2, 0)
    assert told["p_value"] == pytest.approx(2 * 0.5**4)
    assert told["agreement"] is None and told["first_place"] is None


def test_a_judge_that_favours_a_place_is_found_out(played: Lake) -> None:
    told = judged(played, lambda one, other: "A")
    assert (told["first"], told["second"], told["swayed"], told["first_place"]) == (0, 0, 6, 1.0)
    assert told["p_value"] == 1.0


def test_what_is_no_answer_prefers_nobody(played: Lake) -> None:
    assert judged(played, lambda one, other: "")["silent"] == 6


def test_the_judge_is_held_against_people(played: Lake) -> None:
    rows = played.sql("select trajectory_id, policy_id, success from trajectories order by task_id").to_pylist()
    for row in rows:
        annotate(played, row["trajectory_id"], Kind.LABEL, "succeeded" if row["success"] else "failed", who="ann")
    told = judged(played, longer)
    assert (told["labelled"], told["agreement"]["value"]) == (4, 1.0)
    told = judged(played, lambda one, other: {"A": "B", "B": "A"}.get(longer(one, other), "neither"))
    assert told["agreement"]["value"] == 0.0 and told["agreement"]["high"] < 0.5


def test_a_judge_without_a_model_is_refused(played: Lake) -> None:
    arguments = ["compare", "whole", "half", "--where", "true", "--judge", "http://127.0.0.1:9/v1"]
    refused = CliRunner().invoke(app, [*arguments, "--data-dir", str(played.root)])
    assert "--judge-model" in str(refused.exception)
