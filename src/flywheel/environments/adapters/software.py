"""Software of files (`flywheel.environments.software_files`): an agent with a shell in an episode's folder of its own.

Commands run in a sandbox without network (`flywheel.runtime.sandbox`). The checklist is gone through in another one,
when the agent's has ended: what the agent left running or redefined does not reach it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flywheel.environments.capabilities import Advice
from flywheel.environments.privileged import Facts, Milestone, canary
from flywheel.environments.protocol import Observation
from flywheel.environments.software_files import (
    TASKS,
    ChecklistItem,
    Software,
    SoftwareTask,
    read_software,
    read_software_tasks,
)
from flywheel.environments.tool_environment import ToolEnvironment, settings_of
from flywheel.environments.tools import ANSWER, Toolbox, tool, with_answer
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError, TaskError
from flywheel.runtime.sandbox import LockedShell, locked_shell, sandbox_problem
from flywheel.trajectory import Split, Task, Trajectory, digest

NAME = "software"
PARAMETERS = ("folder", "unseen")
SHELL = "shell"
DONE = f'{ANSWER} {{"text": "done"}}'
SHELL_TOOL = tool(
    SHELL,
    "Run a command in the task's folder and read what it prints. There is no network.",
    command={"type": "string"},
)


class SoftwareSession:
    """One episode. Implements `tool_environment.Session`."""

    over = False
    toolbox = Toolbox(with_answer([SHELL_TOOL]))

    def __init__(self, software: Software, source: Path, task: SoftwareTask) -> None:
        self._software, self._source, self._task = software, source, task
        self._folder = Path(tempfile.mkdtemp(prefix="flywheel-software-"))
        self.commands: Counter[str] = Counter()
        """What the agent has run, and how often."""
        self._shell: LockedShell | None = None
        try:
            for path, text in task.files.items():
                target = self._folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
            self._shell = shell = LockedShell(self._folder, software.shell, source, TASKS)
            begun = shell.run(software.setup)
            if begun.status:
                raise InfrastructureError(f"the setup of {task.id} fails: {begun.output.strip()[:300]}")
            self.opening = shell.run(software.observe).output.strip()
        except BaseException:
            self.close()
            raise

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        assert self._shell is not None
        self.commands[arguments["command"]] += 1
        ran = self._shell.run(arguments["command"])
        return ran.output.rstrip("\n") if ran.status == 0 else f"{ran.output}[exit status {ran.status}]"

    def score(self, answer: str | None) -> float:
        self._end_shell()
        with locked_shell(self._folder, self._software.shell, self._source, TASKS) as shell:
            return round(sum(item.points for item in self._task.checklist if _holds(shell, item)), 6) / 100

    def close(self) -> None:
        self._end_shell()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_shell(self) -> None:
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.close()


def _holds(shell: LockedShell, item: ChecklistItem) -> bool:
    return shell.run(item.check).status == 0


class SoftwareEnvironment(ToolEnvironment):
    """Plays sessions, and knows what the expert would do next. Implements `AdvisesLive`."""

    def __init__(self, world: SoftwareWorld) -> None:
        super().__init__(self._begin_session, success=1.0)
        self._world = world

    def reset(self, task: Task) -> Observation:
        self._known = self._world.known(task)
        self._success = self._known.success / 100
        return super().reset(task)

    def advise(self) -> Advice | None:
        """The first command of the solution that was not run yet. What was done wrong it does not see."""
        session = self._session
        assert isinstance(session, SoftwareSession)
        left = session.commands.copy()
        for part in self._known.golden:
            for command in part.commands:
                if not left[command]:
                    return Advice(shell_action(command), part.subgoal)
                left[command] -= 1
        return Advice(DONE, "finish")

    def _begin_session(self, task: Task) -> SoftwareSession:
        return SoftwareSession(self._world.software, self._world.source, self._known)


class SoftwareWorld:
    """The tasks of a folder, and environments for them. Implements `ListsTasks` and `KnowsSolutions`.

    `unseen`: an application whose tasks are in the test split alone, whatever their own split is: what a student makes
    of software that it never saw.
    """

    def __init__(self, source: Path, parameters: str, unseen: str) -> None:
        self.source, self.software = source, read_software(source)
        rows = read_software_tasks(source)
        known = sorted({application for row in rows for application in row.applications})
        if unseen and unseen not in known:
            raise ConfigError(f"no task is of the application '{unseen}'; known: {', '.join(known)}")
        self._tasks = {row.id: (row, _task(row, parameters, held_out=unseen in row.applications)) for row in rows}
        self._environments: list[SoftwareEnvironment] = []

    def listed(self) -> Mapping[Split, Sequence[Task]]:
        tasks = [task for _, task in self._tasks.values()]
        return {split: tuple(task for task in tasks if task.split is split) for split in Split}

    def environments(self, count: int) -> Sequence[SoftwareEnvironment]:
        while len(self._environments) < count:
            self._environments.append(SoftwareEnvironment(self))
        return self._environments[:count]

    def facts(self, task: Task) -> Facts:
        known = self.known(task)
        points = 100 / len(known.golden)
        milestones = tuple(
            Milestone(part.subgoal, shell_action(part.commands[-1]), points, reached=_Did(part.commands[-1]))
            for part in known.golden
        )
        return Facts((*map(shell_action, known.commands), DONE), milestones, canary(task))

    def known(self, task: Task) -> SoftwareTask:
        """What the files say of a task. Raises `TaskError` for one that is not theirs, or not any more."""
        row, listed = self._tasks.get(task.name, (None, None))
        if row is None or listed != task:
            raise TaskError(f"{self.source} has no task {task.name or task.task_id}, or another one under that name")
        return row

    def close(self) -> None:
        for environment in self._environments:
            environment.close()


class _Did:
    """The step that ran a command; None where none did."""

    def __init__(self, command: str) -> None:
        self._action = shell_action(command)

    def __call__(self, trajectory: Trajectory) -> int | None:
        return next((at for at, step in enumerate(trajectory.steps) if step.action == self._action), None)


def shell_action(command: str) -> str:
    """A command as an action."""
    return f"{SHELL} {json.dumps({'command': command}, ensure_ascii=False)}"


def _task(row: SoftwareTask, parameters: str, *, held_out: bool) -> Task:
    data = {"applications": row.applications, "occupation": row.occupation, "expert_steps": len(row.commands) + 1}
    seed = int(digest("seed", row.id, size=4), 16) >> 1
    return Task(
        environment=NAME,
        parameters=parameters,
        split=Split.TEST if held_out else Split(row.split),
        seed=seed,
        instruction=row.instruction,
        name=row.id,
        asked=digest(row.model_dump(), size=4),
        unit=row.group,
        family=row.family,
        data=json.dumps({**data, "unseen": held_out}, sort_keys=True),
    )


@contextmanager
def open_world(parameters: str) -> Iterator[SoftwareWorld]:
    """`folder`: where environment.toml lies. `unseen`: an application that is held out.

    Raises `PrerequisiteError` where the machine lacks a program, or cannot lock a shell up.
    """
    settings = settings_of(parameters, NAME, PARAMETERS, ("folder",))
    world = SoftwareWorld(Path(settings["folder"]), parameters, settings.get("unseen", ""))
    if problem := missing(world.software):
        raise PrerequisiteError(problem)
    try:
        yield world
    finally:
        world.close()


def missing(software: Software) -> str:
    """What this machine lacks for it, and how to get it; empty where nothing."""
    if problem := sandbox_problem():
        return problem
    with tempfile.TemporaryDirectory() as folder, locked_shell(Path(folder), software.shell) as shell:
        for program, command in software.needs.items():
            if shell.run(command).status:
                return f"{software.name} needs {program}: {software.install or 'install it'}"
    return ""
