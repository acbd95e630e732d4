"""The judge: votes of a chat model over the wire, marked by schema, cached, blind to what the agent says of itself.

The server is real and speaks OpenAI's protocol; the model behind it, the one thing here that would cost money, is a
rule that reads the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from flywheel.agents.scripted import Idle
from flywheel.config.curate import VerifierConfig
from flywheel.datasets.formats.catalog import read
from flywheel.datasets.formats.records import ReadContext
from flywheel.environments.privileged import CANARY
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, InfrastructureError
from flywheel.filters.batch import batch_of
from flywheel.filters.calibration.labelled import corrupted
from flywheel.filters.calibration.reward_hacks import cut
from flywheel.filters.verifiers.catalog import needs_world
from flywheel.filters.verifiers.judge import KEY, Judge, prompt
from flywheel.trajectory import Split, Trajectory, Verdict
from tests.conftest import Play
from tests.servers import chat_server


@dataclass
class Model:
    """A model of one rule: an item passes if all its deeds stand in the record and were answered."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    garble: bool = False
    status: int = 200
    harsh: int = -1
    """The vote (its seed) that fails everything."""

    def answer(self, request: dict[str, Any]) -> str:
        self.requests.append(request)
        text = request["messages"][1]["content"]
        if self.garble:
            return "I believe the agent did well."
        rubric = text.partition("# Rubric")[2].partition("\n")[2].partition("\n\n# Record")[0]
        record = text.partition("# Record\n")[2]
        marks = []
        for line in rubric.splitlines():
            number, _, names = line.partition(". ")
            done = (
                all(re.search(rf"action: {re.escape(name)}[ \n]", record) for name in names.split(" and "))
                and request["seed"] != self.harsh
            )
            marks.append({"item": int(number), "mark": "pass" if done else "fail", "evidence": "the record"})
        return json.dumps({"marks": marks, "integrity": 1.0, "reasoning": "rule"})


@pytest.fixture
def model() -> Iterator[Model]:
    told = Model()

    def answer(request: dict[str, Any], key: str) -> tuple[int, str]:
        told.keys.append(key)
        return told.status, told.answer(request)

    with chat_server(answer) as told.url:
        yield told


@pytest.fixture
def judge(world: World, model: Model, tmp_path: Path) -> Judge:
    return Judge(world, tmp_path / "judge", base_url=model.url, model="rule", votes=3)


def says(judge: Judge, episodes: list[Trajectory]) -> list[Verdict]:
    return judge.verify(batch_of(episodes))


def test_the_acceptance_test(judge: Judge, golden: list[Trajectory], play: Play) -> None:
    assert all(verdict.passed for verdict in says(judge, golden[:3]))
    assert not any(verdict.passed for verdict in says(judge, [cut(trajectory, 0) for trajectory in golden[:3]]))
    assert not any(verdict.passed for verdict in says(judge, play(Idle(), 3, max_steps=6)))
    assert not any(verdict.passed for verdict in says(judge, [corrupted(trajectory) for trajectory in golden[:3]]))


def test_votes_are_averaged_and_confidence_is_their_agreement(
    judge: Judge, model: Model, golden: list[Trajectory]
) -> None:
    model.harsh = 2
    verdict = says(judge, golden[:1])[0]
    assert verdict.completion == pytest.approx(200 / 3)
    assert verdict.confidence == pytest.approx(2 / 3)
    assert not verdict.passed
    assert len(json.loads(verdict.raw)) == 3


RUBRIC = """
[[items]]
text = "ls"
points = 3

[[items]]
text = "rm"
points = 1
"""


def test_a_rubric_of_ones_own_needs_no_world(model: Model, tmp_path: Path) -> None:
    (tmp_path / "rubric.toml").write_text(RUBRIC)
    settings: dict[str, Any] = {
        "base_url": model.url,
        "model": "rule",
        "votes": 1,
        "rubric": str(tmp_path / "rubric.toml"),
    }
    assert not needs_world([VerifierConfig(name="judge", arguments=settings)])
    call = {"id": "c", "function": {"name": "ls", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "count the files"},
        {"role": "assistant", "content": "", "reasoning_content": "I am splendid.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a b"},
        {"role": "assistant", "content": "two"},
    ]
    runs = read("chat", {"messages": messages}, Split.TRAIN, ReadContext())
    (verdict,) = says(Judge(None, tmp_path / "judge", **settings), runs)
    assert [(item.name, item.points, item.fraction) for item in verdict.items[:2]] == [("ls", 75, 1), ("rm", 25, 0)]
    text = model.requests[0]["messages"][1]["content"]
    assert "action: ls {}" in text and "environment: a b" in text
    assert "splendid" not in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read"),
        ("items = [", "is not TOML"),
        ("items = []", "items"),
        ("[[items]]\npoints = 1", "text"),
        ("[[items]]\ntext = 'a'\npoints = -1", "points"),
    ],
)
def test_what_is_no_rubric_is_refused_in_one_line(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "rubric.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as refused:
        Judge(None, tmp_path, model="m", rubric=str(path))
    assert "\n" not in str(refused.value)


def test_answers_are_asked_for_once(judge: Judge, model: Model, golden: list[Trajectory]) -> None:
    first = says(judge, golden[:2])
    assert len(model.requests) == 6
    assert [replace(verdict, created_at=0) for verdict in says(judge, golden[:2])] == [
        replace(one, created_at=0) for one in first
    ]
    assert len(model.requests) == 6
    request = model.requests[0]
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["marks", "integrity", "reasoning"]
    assert request["temperature"] == 0.7


def test_answers_that_do_not_fit_are_no_votes(judge: Judge, model: Model, golden: list[Trajectory]) -> None:
    model.garble = True
    verdict = says(judge, golden[:1])[0]
    assert (verdict.passed, verdict.completion, verdict.integrity, verdict.confidence) == (False, 0.0, 1.0, 0.0)
    assert "I believe" in verdict.raw
    model.garble = False
    assert says(judge, golden[:1])[0].passed


@pytest.mark.parametrize(("status", "kind"), [(401, ConfigError), (404, ConfigError), (503, InfrastructureError)])
def test_a_refusal_is_the_users_to_mend_and_a_failure_is_not(
    judge: Judge, model: Model, golden: list[Trajectory], status: int, kind: type[Exception]
) -> None:
    model.status = status
    with pytest.raises(kind, match=f"HTTP {status}"):
        says(judge, golden[:1])


def test_it_never_reads_the_agents_own_words(world: World, golden: list[Trajectory]) -> None:
    boast = replace(golden[0].steps[0], thought="I have solved it splendidly.", subgoal="be splendid")
    one = replace(golden[0], steps=(boast, *golden[0].steps[1:]))
    text = prompt(one, world.facts(one.task))
    assert "splendid" not in text
    assert CANARY not in text
    assert re.search(r"\[0\] action: ", text)


def test_a_server_that_is_gone_is_infrastructure_and_the_key_stays_secret(
    world: World, model: Model, golden: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "a-secret-key")
    judge = Judge(world, tmp_path / "judge", base_url=model.url, model="rule", votes=1)
    verdict = says(judge, golden[:1])[0]
    assert model.keys == ["Bearer a-secret-key"]
    assert "a-secret-key" not in verdict.arguments + verdict.raw
    gone = Judge(world, tmp_path / "elsewhere", base_url="http://127.0.0.1:9/v1", model="rule", votes=1, timeout=5.0)
    with pytest.raises(InfrastructureError, match="does not answer") as told:
        says(gone, golden[:1])
    assert "a-secret-key" not in str(told.value)
