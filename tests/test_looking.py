"""Looking at runs: `flywheel show` tells one as a person reads it, `flywheel compare` sets two policies beside each
other."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flywheel.agents.scripted import Expert
from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.lake.annotations import Kind, annotate
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import FlywheelError
from flywheel.evaluation.compare import first_difference
from flywheel.filters.curate import curate
from flywheel.flows.iterations import begin
from flywheel.trajectory import Split, StopReason, Trajectory, trajectory_id
from tests.conftest import ROOT, Play, World


def run(lake: Lake, *arguments: str) -> Result:
    done = CliRunner().invoke(app, [*arguments, "--data-dir", str(lake.root)])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def tool_run(lake: Lake, tmp_path: Path) -> str:
    """The id of an imported run with a tool call."""
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"at": "/srv"}'}}
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "count the files of /srv"},
        {"role": "assistant", "content": "", "reasoning_content": "I have to look.", "tool_calls": [call]},
        {"role": "tool", "content": "\n".join(f"file {number}" for number in range(40)), "tool_call_id": "c1"},
        {"role": "assistant", "content": "forty"},
    ]
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": messages, "tools": [{"name": "ls"}]}) + "\n")
    import_files(lake, [tmp_path / "log.jsonl"], "chat")
    (name,) = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    return str(name)


def test_a_run_with_tools_reads_as_it_went(lake: Lake, tool_run: str) -> None:
    shown = run(lake, "show", tool_run[:10]).stdout
    for words in ("You are terse.", "count the files", "I have to look.", '{"at": "/srv"}', "file 0", "forty"):
        assert words in shown
    assert "file 39" not in shown and "--full" in shown
    whole = run(lake, "show", tool_run, "--full").stdout
    assert "file 39" in whole
    assert "success" not in whole  # nobody said


def test_steps_can_be_chosen(lake: Lake, tool_run: str) -> None:
    shown = run(lake, "show", tool_run, "--steps", "1:2").stdout
    assert "step 1" in shown and "step 0" not in shown
    assert "step 0" in run(lake, "show", tool_run, "--steps", "0").stdout
    refused = CliRunner().invoke(app, ["show", tool_run, "--steps", "a:b", "--data-dir", str(lake.root)])
    assert "FROM:TO" in str(refused.exception)


def test_an_episode_shows_subgoals_and_verdicts(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:1], "episode")
    curate(smoke, lake)
    shown = run(lake, "show", golden[0].trajectory_id).stdout
    first = golden[0].steps[0]
    assert first.observation.split(".")[0] in shown
    assert "█ " in shown and "passed: completion" in shown
    description = json.loads(run(lake, "show", golden[0].trajectory_id, "--json").stdout)
    assert [step["action"] for step in description["steps"]] == [step.action for step in golden[0].steps]
    assert all(step["subgoal"] for step in description["steps"])


def played(episode: Trajectory, policy_id: str, *, success: bool) -> Trajectory:
    """An evaluation of a task by a policy that acts like the expert, and stops half-way where it fails."""
    steps = episode.steps if success else episode.steps[: episode.length // 2]
    return dataclasses.replace(
        episode,
        trajectory_id=trajectory_id(episode.task, policy_id, "1", "evaluate", 0),
        policy_id=policy_id,
        purpose="evaluate",
        steps=steps,
        length=len(steps),
        success=success,
        stop_reason=StopReason.SUCCESS if success else StopReason.STEP_LIMIT,
    )


def test_policies_are_compared_task_by_task(lake: Lake, world: World, play: Play) -> None:
    tasks = play(Expert(world), 4, split=Split.DEV)
    results = [(True, True), (True, False), (False, True), (False, False)]
    for episode, (ours, theirs) in zip(tasks, results, strict=True):
        lake.append([played(episode, "a-1", success=ours), played(episode, "b-1", success=theirs)], "evaluated")
    comparison = json.loads(run(lake, "compare", "a-1", "b-1", "--contexts", "2", "--json").stdout)
    assert comparison["counts"] == {"both": 1, "won": 1, "lost": 1, "neither": 1}
    assert len(comparison["divergences"]) == 2
    won = next(row for row in comparison["tasks"] if row["result"] == "won")
    part = comparison["divergences"][won["task_id"]]
    assert (part["index"], part["second"]) == (won["second_steps"], None)
    assert part["first"]["action"]
    shown = run(lake, "compare", "a-1", "b-1").stdout
    assert "they part at step" in shown and "had ended" in shown


def test_policies_that_share_no_task_are_told_so(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:1], "episode")
    refused = CliRunner().invoke(app, ["compare", "a", "b", "--data-dir", str(lake.root)])
    assert "played no task in common" in str(refused.exception)


def test_runs_part_at_the_first_other_action(golden: list[Trajectory]) -> None:
    other = dataclasses.replace(golden[0].steps[2], action="drop knife")
    changed = dataclasses.replace(golden[0], steps=(*golden[0].steps[:2], other, *golden[0].steps[3:]))
    part = first_difference(golden[0], changed)
    assert part is not None and part.index == 2
    assert part.second is not None and part.second["action"] == "drop knife"
    assert first_difference(golden[0], golden[0]) is None


def test_people_tag_note_and_label_a_run(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:2], "episodes")
    name = golden[0].trajectory_id
    run(lake, "annotate", name[:10], "--tag", "odd", "--tag", "long", "--note", "reads twice", "--label", "succeeded")
    run(lake, "annotate", name, "--untag", "odd", "--label", "failed")
    told = json.loads(run(lake, "annotate", name, "--tag", "long", "--json").stdout)["annotations"]
    assert [(each["kind"], each["value"]) for each in told] == [
        ("note", "reads twice"),
        ("label", "failed"),
        ("tag", "long"),
    ]
    assert lake.sql("select tag from tags")["tag"].to_pylist() == ["long"]


@pytest.mark.parametrize(
    "said", [["--label", "perhaps"], ["--tag", "  "], ["--tag", "x" * 61], ["--note", "x" * 10_001], []]
)
def test_what_says_nothing_of_a_run_changes_nothing(lake: Lake, golden: list[Trajectory], said: list[str]) -> None:
    lake.append(golden[:1], "episode")
    before = lake.snapshot()
    arguments = ["annotate", golden[0].trajectory_id, "--tag", "good", *said] if said else ["annotate", "nothing"]
    refused = CliRunner().invoke(app, [*arguments, "--data-dir", str(lake.root)])
    assert refused.exit_code and isinstance(refused.exception, FlywheelError)
    assert lake.snapshot() == before


def test_verdicts_are_held_against_what_people_say(
    smoke: Config, lake: Lake, golden: list[Trajectory], noisy: list[Trajectory]
) -> None:
    lake.append([*golden, *noisy], "episodes")
    curate(smoke, lake)
    refused = CliRunner().invoke(app, ["verifiers", "people", "--data-dir", str(lake.root)])
    assert "flywheel annotate" in str(refused.exception)
    for episode in golden[:3]:
        annotate(lake, episode.trajectory_id, Kind.LABEL, "succeeded", who="ann")
    failed = next(episode for episode in noisy if not episode.success)
    annotate(lake, failed.trajectory_id, Kind.LABEL, "succeeded", who="ann")
    annotate(lake, failed.trajectory_id, Kind.LABEL, "failed", who="ann")
    annotate(lake, golden[3].trajectory_id, Kind.LABEL, "failed", who="ann")
    annotate(lake, golden[3].trajectory_id, Kind.LABEL, "succeeded", who="ben")  # they differ: left out
    annotate(lake, golden[4].trajectory_id, Kind.LABEL, "failed", who="ann")  # the verifiers differ from her
    told = {each["verifier"]: each for each in json.loads(run(lake, "verifiers", "people", "--json").stdout)}
    assert told["privileged"]["labelled"] == 5
    assert told["privileged"]["agreement"] == {"precision": 0.75, "recall": 1.0, "kappa": pytest.approx(6 / 11)}


def test_top_tells_what_happens(lake: Lake, golden: list[Trajectory]) -> None:
    assert "iteration 0 not begun" in run(lake, "top").stdout
    lake.append([dataclasses.replace(episode, started_at=time.time()) for episode in golden], "episodes")
    begin(load(ROOT / "configs" / "smoke.toml"), lake, 1)
    shown = run(lake, "top").stdout
    assert "iteration 1 running, champion random" in shown and "expert" in shown
    (row,) = json.loads(run(lake, "top", "--json").stdout)["runs"]
    assert (row["runs"], row["waiting"], row["policy"]) == (len(golden), len(golden), "expert")
    assert row["a_minute"] > 0
