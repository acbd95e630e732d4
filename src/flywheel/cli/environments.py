"""`flywheel env`: begin an environment of one's own, and hold one to its word."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flywheel.cli.console import AsJson, say
from flywheel.cli.output import show_table
from flywheel.errors import ConfigError

environment_commands = typer.Typer(no_args_is_help=True, help="Begin an environment of your own, and check one.")
BROKEN = 1

MODULE = '''"""{name}: say here what the agent works in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flywheel.environments.protocol import Observation, Transition
from flywheel.trajectory import Split, Task

FIRST = {{Split.TRAIN: 0, Split.DEV: 10_000, Split.TEST: 20_000}}
"""Where the seeds of a split begin: no task lies in two."""


class Counter:
    """One episode at a time: count up to the number that the task names. Put your own in its place."""

    def reset(self, task: Task) -> Observation:
        self.goal, self.count = task.seed % 5 + 1, 0
        return self.look("")

    def step(self, action: str) -> Transition:
        known = action.strip() == "add one"
        self.count += known
        solved = self.count == self.goal
        answer = f"The count is {{self.count}}." if known else "I only know: add one"
        return Transition(self.look(answer), float(solved), self.count / self.goal, terminated=solved, success=solved)

    def look(self, answer: str) -> Observation:
        return Observation(f"The count is {{self.count}} of {{self.goal}}.", answer, state_key=str(self.count))


class Counters:
    """Hands out environments that step independently, and makes tasks."""

    def environments(self, count: int) -> Sequence[Counter]:
        return [Counter() for _ in range(count)]

    def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        first = FIRST[split] + start
        return tuple(self.find(split, seed) for seed in range(first, first + count))

    def find(self, split: Split, seed: int) -> Task:
        return Task("{name}", "{{}}", split, seed, f"Count to {{seed % 5 + 1}}.")


@contextmanager
def open_world(parameters: str) -> Iterator[Counters]:
    yield Counters()
'''
TEST = '''"""{name} keeps its word."""

from __future__ import annotations

from flywheel.environments.catalog import open_world
from flywheel.environments.conformance import conformance


def test_it_keeps_its_word() -> None:
    with open_world("{name}", "{{}}") as world:
        assert [check for check in conformance(world, ["add one"]) if check.ok is False] == []
'''


@environment_commands.command(epilog="Example: flywheel env new my_shop && flywheel env check my_shop")
def new(name: Annotated[str, typer.Argument(help="The module's name, as my_shop.")], as_json: AsJson = False) -> None:
    """Write a working environment and its test into the current folder."""
    if not name.isidentifier() or name in sys.stdlib_module_names:
        raise ConfigError(f"'{name}' cannot name a module of yours; use letters, digits and _, as my_shop")
    texts = {Path(f"{name}.py"): MODULE, Path(f"test_{name}.py"): TEST}
    if taken := [str(path) for path in texts if path.exists()]:
        raise ConfigError(f"{taken[0]} is there already; name another environment")
    for path, text in texts.items():
        path.write_text(text.format(name=name), encoding="utf-8")
    say({"written": [str(path) for path in texts], "next": f"flywheel env check {name}"}, as_json)


@environment_commands.command("list", epilog="Example: flywheel env list")
def list_environments(as_json: AsJson = False) -> None:
    """The environments by name, and whether they run on this machine or what makes them run."""
    from flywheel.environments.catalog import ENVIRONMENTS

    rows = [(name, adapter.what, adapter.lacking()) for name, adapter in ENVIRONMENTS.items()]
    if as_json:
        say({"environments": [{"name": name, "what": what, "lacking": lacking} for name, what, lacking in rows]}, True)
    else:
        show_table(["name", "what", "here"], [[name, what, lacking or "ready"] for name, what, lacking in rows])


@environment_commands.command(epilog="Example: flywheel env check my_shop --param floors=3 --action 'add one'")
def check(
    name: Annotated[str, typer.Argument(help="A name from docs/extending.md, or a module of yours.")],
    param: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A parameter of the world.")] = None,
    action: Annotated[
        list[str] | None, typer.Option(help="What to try where it lists no actions; more than once for several.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="A file or folder of tasks, where it makes none of its own.")] = "",
    as_json: AsJson = False,
) -> None:
    """Hold an environment to its word, and say what it can do. Exit code 1: a promise is broken."""
    from dataclasses import asdict

    from flywheel.environments.capabilities import ListsTasks, describe_capabilities
    from flywheel.environments.catalog import canonical, open_world
    from flywheel.environments.conformance import conformance
    from flywheel.environments.task_lists import read_tasks
    from flywheel.rollouts.tasks import TaskSource
    from flywheel.trajectory import Split

    parameters = canonical(_parameters(param or []))
    with open_world(name, parameters) as world:
        listed = world.listed() if isinstance(world, ListsTasks) else None
        listed = read_tasks(tasks, name, parameters, {}, {}) if tasks else listed
        checks = conformance(world, action or (), listed)
        able = []
        if checks[0].ok:
            (task,) = TaskSource(world, listed, again=False).draw(Split.TRAIN, 0, 1)
            able = describe_capabilities(world, world.environments(1)[0].reset(task))
    if as_json:
        capabilities = [{"capability": what, "has": has, "for": use} for what, has, use in able]
        say({"checks": [asdict(each) for each in checks], "capabilities": capabilities}, as_json)
    else:
        words = {True: "holds", False: "BROKEN", None: "not seen"}
        show_table(["promise", "", "why"], [[each.promise, words[each.ok], each.detail] for each in checks])
        show_table(["offers", "", "for"], [[what, "yes" if has else "no", use] for what, has, use in able])
    if any(each.ok is False for each in checks):
        raise typer.Exit(BROKEN)


def _parameters(given: list[str]) -> dict[str, Any]:
    """Values are JSON, or else text."""
    parameters: dict[str, Any] = {}
    for entry in given:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise ConfigError("--param is KEY=VALUE, as floors=3")
        try:
            parameters[key] = json.loads(value)
        except ValueError:
            parameters[key] = value
    return parameters
