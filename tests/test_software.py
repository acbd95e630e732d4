"""Software as an environment from files alone: a locked shell, tasks with checklists, an application left out."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.environments.adapters.software import DONE, SoftwareWorld, open_world, shell_action
from flywheel.environments.capabilities import describe_capabilities
from flywheel.environments.conformance import conformance
from flywheel.environments.task_checks import refusal
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError, TaskError
from flywheel.runtime.sandbox import Limits, LockedShell, locked_shell, sandbox_problem
from flywheel.trajectory import Split

ENVIRONMENT = """
name = "notes"
needs = { sqlite3 = "sqlite3 --version" }
install = "apt-get install sqlite3"
setup = "sqlite3 notes.db < notes.sql"
observe = "ls"
[shell]
seconds = 2
output_chars = 300
"""
TASK = {
    "id": "sum",
    "instruction": "Write the sum of the notes to sum.txt, and keep a copy.",
    "split": "train",
    "family": "sums",
    "applications": ["notes"],
    "occupation": "43-3031",
    "files": {"notes.sql": "create table note (n); insert into note values (3), (4);", "more/readme": "sums\n"},
    "golden": [
        {"subgoal": "sum", "commands": ['sqlite3 notes.db "select sum(n) from note" > sum.txt']},
        {"subgoal": "copy", "commands": ["cat sum.txt", "cp sum.txt copy.txt"]},
    ],
    "checklist": [
        {"name": "the sum", "points": 60, "check": 'test "$(cat sum.txt)" = 7'},
        {"name": "the copy", "points": 40, "check": "cmp sum.txt copy.txt"},
    ],
}
OTHER = {**TASK, "id": "count", "split": "dev", "applications": ["notes", "counter"], "instruction": "Count."}


LACKING = sandbox_problem() or ("" if shutil.which("sqlite3") else "there is no sqlite3: apt-get install sqlite3")
pytestmark = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def written(folder: Path, *tasks: dict[str, Any], environment: str = ENVIRONMENT) -> Path:
    (folder / "tasks").mkdir(parents=True)
    (folder / "environment.toml").write_text(environment)
    (folder / "tasks" / "all.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks or (TASK, OTHER)))
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SoftwareWorld]:
    with open_world(json.dumps({"folder": str(written(tmp_path / "notes"))})) as opened:
        yield opened


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[LockedShell]:
    with locked_shell(tmp_path, Limits(seconds=1, file_mib=1, output_chars=100)) as opened:
        yield opened


def test_a_shell_writes_in_its_folder_and_nowhere_else(shell: LockedShell, tmp_path: Path) -> None:
    outside = Path(__file__)
    assert shell.run("echo é > mine && cat mine").output == "é\n"
    assert (tmp_path / "mine").read_text() == "é\n"
    for command in (f"cat {outside}", "touch /usr/mine", "chroot /", "mount -t tmpfs x /tmp", "unshare -r true"):
        assert shell.run(command).status != 0, command
    assert "boot" not in shell.run("ls /").output.split()


def test_a_shell_has_no_network_and_sees_no_other_process(shell: LockedShell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert shell.run(f"bash -c 'echo > /dev/tcp/127.0.0.1/{port}'").status != 0
    assert len(shell.run("cd /proc && ls -d [0-9]*").output.split()) < 10


def test_what_takes_too_long_or_says_too_much_is_cut(shell: LockedShell, tmp_path: Path) -> None:
    endless = shell.run("sleep 30 & while true; do :; done")
    assert (endless.status, "killed after 1 s" in endless.output) == (124, True)
    assert shell.run("head -c 1000 /dev/zero | tr '\\0' a").output == "a" * 100 + "\n[cut]"
    assert shell.run("head -c 3000000 /dev/zero > big").status != 0
    assert (tmp_path / "big").stat().st_size == 1 << 20
    assert shell.run("kill -9 1; echo still here").output == "still here\n"


def test_a_shell_that_is_gone_is_nobodys_failure(tmp_path: Path) -> None:
    shell = LockedShell(tmp_path, Limits())
    shell.close()
    with pytest.raises(InfrastructureError, match="the shell is gone"):
        shell.run("true")


def test_the_solution_solves_the_task_and_half_of_it_does_not(world: SoftwareWorld) -> None:
    (task,) = world.listed()[Split.TRAIN]
    assert refusal(world, task) == ""
    environment = world.environments(1)[0]
    assert environment.reset(task).text == "more\nnotes.db\nnotes.sql"
    played = []
    while (advice := environment.advise()) is not None:
        transition = environment.step(advice.action)
        played.append((advice.subgoal, advice.action))
        if transition.terminated:
            break
    assert transition.success
    facts = world.facts(task)
    assert [action for _, action in played] == list(facts.gold_actions)
    assert [milestone.name for milestone in facts.milestones] == ["sum", "copy"]
    environment.reset(task)
    environment.step(facts.gold_actions[0])
    partly = environment.step(DONE)
    assert (partly.terminated, partly.success, partly.reward) == (True, False, 0.6)


def test_what_an_agent_does_to_its_shell_does_not_reach_the_checklist(world: SoftwareWorld) -> None:
    (task,) = world.listed()[Split.TRAIN]
    environment = world.environments(1)[0]
    environment.reset(task)
    for command in ("cp /bin/true test", "cp /bin/true cmp", "(while true; do echo 7 > sum.txt; done) &"):
        environment.step(shell_action(command))
    environment.step(shell_action("sleep 0.2; rm -f copy.txt"))
    assert not environment.step(DONE).success


def test_no_agent_reads_the_solutions(world: SoftwareWorld) -> None:
    (task,) = world.listed()[Split.TRAIN]
    environment = world.environments(1)[0]
    environment.reset(task)
    assert "environment.toml" in environment.step(shell_action("ls /software")).observation.text
    assert "copy.txt" not in environment.step(shell_action("grep -r copy /software /work")).observation.text
    assert environment.step(shell_action("ls -A /software/tasks")).observation.text == ""


def test_failed_commands_say_so_and_the_episode_goes_on(world: SoftwareWorld) -> None:
    (task,) = world.listed()[Split.TRAIN]
    environment = world.environments(1)[0]
    environment.reset(task)
    assert "[exit status 3]" in environment.step(shell_action("echo oh; exit 3")).observation.text
    assert not environment.step('shell {"comand": "ls"}').terminated


def test_it_keeps_its_word(world: SoftwareWorld) -> None:
    assert [check for check in conformance(world, listed=world.listed()) if check.ok is False] == []
    (task,) = world.listed()[Split.TRAIN]
    able = {what: has for what, has, _ in describe_capabilities(world, world.environments(1)[0].reset(task))}
    assert able["tasks of its own: tasks(split, start, count), or listed()"]


def test_an_application_that_is_left_out_is_in_the_test_split_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "notes")
    with open_world(json.dumps({"folder": str(folder), "unseen": "counter"})) as world:
        assert {split: [task.name for task in tasks] for split, tasks in world.listed().items()} == {
            Split.TRAIN: ["sum"],
            Split.DEV: [],
            Split.TEST: ["count"],
        }
        (task,) = world.listed()[Split.TEST]
    assert json.loads(task.data)["unseen"]
    with pytest.raises(ConfigError, match="no task is of the application 'mail'; known: counter, notes"):
        open_world(json.dumps({"folder": str(folder), "unseen": "mail"})).__enter__()


def test_a_task_that_reads_otherwise_now_is_no_task(world: SoftwareWorld, tmp_path: Path) -> None:
    (task,) = world.listed()[Split.TRAIN]
    written(tmp_path / "changed", {**TASK, "golden": TASK["golden"][:1]})  # type: ignore[index]
    with (
        open_world(task.parameters.replace("/notes", "/changed")) as other,
        pytest.raises(TaskError, match="has no task"),
    ):
        other.facts(task)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checklist": TASK["checklist"][:1]}, "must add up to 100"),  # type: ignore[index]
        ({"limit": 3}, "limit: there is no such key"),
        ({"split": "validation"}, "split: Input should be"),
        ({"files": {"../x": ""}}, "'../x' does not"),
        ({"occupation": "clerk"}, "Standard Occupational"),
        ({"golden": []}, "golden"),
    ],
)
def test_a_file_that_tells_no_task_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder = written(tmp_path / "notes", {**TASK, **change})
    result = CliRunner().invoke(app, ["env", "check", "software", "--param", f"folder={folder}"])
    assert isinstance(result.exception, ConfigError)
    assert f"{folder}/tasks/all.jsonl:1" in str(result.exception)
    assert says in str(result.exception)


@pytest.mark.parametrize(
    ("environment", "error", "says"),
    [
        (
            ENVIRONMENT.replace("sqlite3 --version", "false"),
            PrerequisiteError,
            "needs sqlite3: apt-get install sqlite3",
        ),
        (ENVIRONMENT.replace("observe", "watch"), ConfigError, "environment.toml: watch: there is no such key"),
        ("name = ", ConfigError, "environment.toml cannot be read"),
    ],
)
def test_an_environment_that_cannot_start_says_why(
    tmp_path: Path, environment: str, error: type[Exception], says: str
) -> None:
    folder = written(tmp_path / "notes", environment=environment)
    with pytest.raises(error, match=says):
        open_world(json.dumps({"folder": str(folder)})).__enter__()


def test_each_environment_says_whether_it_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> dict[str, str]:
        listing = json.loads(CliRunner().invoke(app, ["env", "list", "--json"]).output)
        return {each["name"]: each["lacking"] for each in listing["environments"]}

    assert set(lacking().values()) == {""}
    monkeypatch.setattr("flywheel.environments.catalog.find_spec", lambda package: None)
    assert lacking()["gymnasium"] == "pip install 'trajectory-flywheel[gymnasium]'"


def test_toml_tells_tasks_too_and_a_setup_that_fails_is_nobodys_failure(tmp_path: Path) -> None:
    folder = written(tmp_path / "notes", TASK, environment=ENVIRONMENT.replace("notes.sql", "other.sql"))
    (folder / "tasks" / "more.toml").write_text(
        "[[task]]\nid = 'by hand'\ninstruction = 'Do.'\nsplit = 'test'\napplications = ['notes']\n"
        "golden = [{ subgoal = 'all', commands = ['true'] }]\n"
        "checklist = [{ name = 'all', points = 100, check = 'true' }]\n"
    )
    with open_world(json.dumps({"folder": str(folder)})) as world:
        (task,) = world.listed()[Split.TEST]
        with pytest.raises(InfrastructureError, match="the setup of by hand fails"):
            world.environments(1)[0].reset(task)
