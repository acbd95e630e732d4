"""An environment of one's own, as docs/howto/own-environment.md tells it: JSON actions that nobody lists."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.agents.contexts.action_mask import ActionMask
from flywheel.agents.scripted import Expert
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import open_world
from flywheel.environments.protocol import Observation
from flywheel.errors import ConfigError
from flywheel.filters.verifiers.catalog import Tools, make_verifiers
from flywheel.flows.doctor import diagnose
from tests.servers import chat_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "own-environment.md").read_text()


def teach(request: dict[str, Any], key: str) -> tuple[int, str]:
    """A scripted teacher: reads the file, then writes its word into the other one."""
    spoken = "\n".join(message["content"] for message in request["messages"] if message["role"] == "user")
    source, target = re.findall(r"Copy the word of (\w+)\.txt into (\w+)\.txt", spoken)[-1]
    words = re.findall(r"says: (\w+)", spoken)
    call = {"tool": "write", "path": f"{target}.txt", "text": words[-1]} if words else None
    action = json.dumps(call or {"tool": "read", "path": f"{source}.txt"})
    return 200, f"Thought: step by step\nAction: {action}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """The page's two files in a folder of their own, and a teacher that answers."""
    environment, make_tasks, settings = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "notes.py").write_text(environment)
    (tmp_path / "notes.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    exec(make_tasks, {})
    with chat_server(teach) as url:
        yield load(tmp_path / "notes.toml", [f"chat.base_url={url}", f"data_dir={tmp_path / 'lake'}"])
    sys.modules.pop("notes", None)


def test_doctor_says_what_the_environment_lacks(project: Config) -> None:
    (accepted,) = (finding for finding in diagnose(project) if finding.check == "environment")
    assert accepted.ok, accepted
    assert "it lacks tasks of its own" in accepted.detail
    assert "solutions: facts(task)" in accepted.detail
    with_expert = project.model_copy(
        update={"collect": project.collect.model_copy(update={"teachers": {"expert": 1.0}})}
    )
    (refused,) = (finding for finding in diagnose(with_expert) if finding.check == "environment")
    assert not refused.ok
    assert "the teacher expert needs solutions" in refused.detail


def test_doctor_says_where_a_stricter_verifier_would_do() -> None:
    lax = load(ROOT / "configs" / "smoke.toml", ['curate.verifiers=["outcome"]'])
    (hinted,) = (finding for finding in diagnose(lax) if finding.check == "environment")
    assert hinted.ok
    assert "it knows solutions: privileged in curate.verifiers" in hinted.detail
    (strict,) = (found for found in diagnose(load(ROOT / "configs" / "smoke.toml")) if found.check == "environment")
    assert "privileged" not in strict.detail


@pytest.mark.parametrize("name", ["privileged", "process", "judge"])
def test_a_verifier_that_needs_solutions_is_refused_by_name(project: Config, name: str) -> None:
    (entry,) = load(Path("notes.toml"), [f'curate.verifiers=["{name}"]']).curate.verifiers
    arguments = {"base_url": "http://127.0.0.1:1/v1", "model": "m"} if name == "judge" else {}
    with open_world("notes", "{}") as world, pytest.raises(ConfigError, match=f"{name} needs solutions"):
        make_verifiers([entry.model_copy(update={"arguments": arguments})], Tools(world, Path("judge")))


def test_an_expert_needs_solutions(project: Config) -> None:
    with open_world("notes", "{}") as world, pytest.raises(ConfigError, match="the teacher expert needs solutions"):
        Expert(world)


def test_every_action_is_offered_where_states_have_no_name() -> None:
    mask, seen = ActionMask(1), Observation("the same", valid_actions=("left", "right"))
    for _ in range(3):
        assert mask.offer(seen) == ["left", "right"]
        mask.took(seen, "left")


@pytest.mark.slow
def test_the_wheel_turns_twice_and_its_student_solves_held_out_tasks(project: Config) -> None:
    from flywheel.flows.run import run

    run(project)
    with Lake.of(project) as lake:
        rates = lake.sql("select policy, iteration, split, rate from evaluations order by all").to_pylist()
        actions = lake.sql(
            "select distinct action from steps join trajectories using (trajectory_id) where policy = 'chat'"
        )
    assert {json.loads(action)["tool"] for action in actions["action"].to_pylist()} == {"read", "write"}
    assert {row["policy"] for row in rates} == {"chat", "flat", "random"}  # success alone names no subgoals
    assert any(row["policy"] == "flat" and row["split"] == "test" and row["rate"] > 0 for row in rates), rates
