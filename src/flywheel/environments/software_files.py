"""Software as an environment, described by files alone (the idea of Gym-Anything): `environment.toml` says how it
starts and what an agent sees, `tasks/` what is to be done, on which files, and by which checklist it counts as done.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flywheel.errors import ConfigError
from flywheel.runtime.sandbox import Limits
from flywheel.text import printable_line

Name = Annotated[str, Field(min_length=1, max_length=200)]
_Kind = TypeVar("_Kind", bound=BaseModel)
TASKS = "tasks"
"""The folder of the tasks, which holds what no agent may see."""
SOC = re.compile(r"\d\d-\d{4}")
"""An occupation in the Standard Occupational Classification."""


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Software(_StrictModel):
    """`needs`: program → the command that shows that it is there; `install`: what brings them. `setup` begins an
    episode when the task's files lie in its folder; what `observe` prints is what the agent sees first."""

    name: Name
    description: str = ""
    needs: dict[str, str] = Field(default_factory=dict)
    install: str = ""
    setup: str = "true"
    observe: str = "ls"
    shell: Limits = Limits()


class ChecklistItem(_StrictModel):
    """`check`: a command that succeeds, in the folder that the agent left behind, where this was done."""

    name: Name
    points: float = Field(gt=0, le=100)
    check: str = Field(min_length=1)


class GoldenPart(_StrictModel):
    """A subgoal and the commands that reach it."""

    subgoal: Name
    commands: tuple[str, ...] = Field(min_length=1)


class SoftwareTask(_StrictModel):
    """`group`: tasks of one lie in one split. `family`: the template. `files`: path → text, before `setup`. `golden`
    and `checklist` are privileged: no agent sees them. `success`: points from which the task counts as solved."""

    id: Name
    instruction: str = Field(min_length=1)
    split: Literal["train", "dev", "test"]
    group: str = ""
    family: str = ""
    applications: tuple[Name, ...] = Field(min_length=1)
    occupation: str = ""
    files: dict[Name, str] = Field(default_factory=dict)
    golden: tuple[GoldenPart, ...] = Field(min_length=1)
    checklist: tuple[ChecklistItem, ...] = Field(min_length=1)
    success: float = Field(default=100.0, gt=0, le=100)

    @model_validator(mode="after")
    def _adds_up(self) -> SoftwareTask:
        if abs(sum(item.points for item in self.checklist) - 100) > 1e-6:
            raise ValueError("the points of the checklist must add up to 100")
        if self.occupation and not SOC.fullmatch(self.occupation):
            raise ValueError("occupation is a code of the Standard Occupational Classification, as 43-3031")
        if outside := [path for path in self.files if Path(path).is_absolute() or ".." in Path(path).parts]:
            raise ValueError(f"files lie in the episode's folder, and '{outside[0]}' does not")
        return self

    @property
    def commands(self) -> list[str]:
        """The whole solution."""
        return [command for part in self.golden for command in part.commands]


def read_software(folder: Path) -> Software:
    """What `environment.toml` says. Raises `ConfigError` with the place of what is wrong."""
    path = folder / "environment.toml"
    try:
        return _validated(Software, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; environment.parameters.folder names a folder that has one") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def read_software_tasks(folder: Path) -> list[SoftwareTask]:
    """The tasks in `tasks/`: `[[task]]` tables of TOML files, rows of JSON lines.

    Raises `ConfigError` with the place of the first that is none.
    """
    tasks: dict[str, SoftwareTask] = {}
    for place, row in _rows(folder / TASKS):
        task = _validated(SoftwareTask, row, place)
        if task.id in tasks:
            raise ConfigError(f"{place}: there is a task '{task.id}' already")
        tasks[task.id] = task
    if not tasks:
        raise ConfigError(f"there is no task in {folder / TASKS}; put .toml or .jsonl files there")
    splits: dict[str, str] = {}
    for task in tasks.values():
        unit = task.group or task.id
        if splits.setdefault(unit, task.split) != task.split:
            raise ConfigError(f"group '{unit}' lies in {splits[unit]} and, with task '{task.id}', in {task.split}")
    return list(tasks.values())


def _rows(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".toml", ".jsonl"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".toml":
                yield from ((f"{path}, task {at}", row) for at, row in enumerate(_tables(path, text), start=1))
            else:
                lines = enumerate(text.splitlines(), start=1)
                yield from ((f"{path}:{at}", json.loads(line)) for at, line in lines if line.strip())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None


def _tables(path: Path, text: str) -> list[Any]:
    document = tomllib.loads(text)
    if document.keys() != {"task"} or not isinstance(document["task"], list):
        raise ConfigError(f"{path}: tasks are [[task]] tables, and nothing else stands beside them")
    return list(document["task"])


def _validated(kind: type[_Kind], data: Any, place: str) -> _Kind:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = "there is no such key" if first["type"] == "extra_forbidden" else str(first["msg"])
        raise ConfigError(printable_line(f"{place}: {where}: {what}".replace("Value error, ", ""))) from None
