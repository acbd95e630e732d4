"""An environment behind tools: sessions that are called, until the agent answers or the session is over."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from flywheel.environments.protocol import Observation, Transition
from flywheel.environments.tools import ANSWER, Toolbox
from flywheel.errors import ConfigError, InfrastructureError, named_reason
from flywheel.messages import Message
from flywheel.trajectory import Task

log = logging.getLogger(__name__)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
BEGIN = "Begin."
"""What an agent is told where a task has nothing to show at first."""


class Session(Protocol):
    """One episode. `toolbox`: what may be called, the answer included; `opening`: what there is to see at first."""

    toolbox: Toolbox
    opening: str

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """What a tool returns. What it raises is told to the agent, but for `InfrastructureError`."""
        ...

    @property
    def over(self) -> bool:
        """Has the session ended by itself?"""
        ...

    def score(self, answer: str | None) -> float:
        """How well the task was done, once it is over. `answer`: the agent's word, if it gave one."""
        ...

    def close(self) -> None: ...


Begin = Callable[[Task], Session]


class ToolEnvironment:
    """Plays sessions, one at a time. `success`: the score from which a task counts as solved."""

    def __init__(self, begin: Begin, success: float) -> None:
        self._begin, self._success = begin, success
        self._session: Session | None = None
        self._answer: str | None = None

    def reset(self, task: Task) -> Observation:
        self.close()
        self._answer = None
        self._session = self._begin(task)
        return self._session.toolbox.observation([Message("user", self._session.opening or BEGIN)])

    def step(self, action: str) -> Transition:
        session = self._session
        if session is None:
            raise InfrastructureError("the episode is over, or has not begun")
        results = session.toolbox.results(action, self._run)
        seen = session.toolbox.observation(results)
        if self._answer is None and not session.over:
            return Transition(seen, 0.0, 0.0, terminated=False, success=False)
        score = _sound(session.score(self._answer))
        self.close()
        solved = score >= self._success
        return Transition(seen, score, 1.0 if solved else min(max(score, 0.0), 0.99), terminated=True, success=solved)

    def _run(self, name: str, arguments: dict[str, Any]) -> str:
        assert self._session is not None
        if self._answer is not None or self._session.over:
            raise RuntimeError("the task is over")
        if name == ANSWER:
            self._answer = arguments["text"]
            return ""
        return self._session.call(name, arguments)

    def close(self) -> None:
        """Let go of the session. One that cannot be closed is left behind, and said."""
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except Exception as error:
                log.warning("a session could not be closed: %s", named_reason(error))


class ToolWorld:
    """Hands out environments that play sessions. Tasks come from a list."""

    def __init__(self, seat: Callable[[], Begin], success: float) -> None:
        self._seat, self._success = seat, success
        self._environments: list[ToolEnvironment] = []

    def environments(self, count: int) -> Sequence[ToolEnvironment]:
        while len(self._environments) < count:
            self._environments.append(ToolEnvironment(self._seat(), self._success))
        return self._environments[:count]

    def close(self) -> None:
        for environment in self._environments:
            environment.close()


@contextmanager
def tool_world(seat: Callable[[], Begin], success: float) -> Iterator[ToolWorld]:
    """A world of sessions; leaving the context closes those that run. `seat`: called once for each environment, says
    how its sessions begin."""
    world = ToolWorld(seat, success)
    try:
        yield world
    finally:
        world.close()


def settings_of(parameters: str, adapter: str, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Any]:
    """The adapter's settings. Raises `ConfigError` for one that it does not know, or that is missing."""
    settings: dict[str, Any] = _expanded(json.loads(parameters))
    if unknown := sorted(settings.keys() - set(known)):
        raise ConfigError(f"{adapter} has no parameter '{unknown[0]}'; known: {', '.join(known)}")
    if missing := [name for name in required if not settings.get(name)]:
        raise ConfigError(f"{adapter} needs environment.parameters.{missing[0]}; see docs/environments.md")
    return settings


def _expanded(value: Any) -> Any:
    """A setting with `${NAME}` replaced by that environment variable: secrets stand in no config."""
    if isinstance(value, dict):
        return {key: _expanded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner) for inner in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
        raise ConfigError(f"environment.parameters names ${{{match[1]}}}, and there is no such environment variable")
    return os.environ[match[1]]


def data_of(task: Task) -> Any:
    """What the task tells the environment, None for nothing."""
    return json.loads(task.data) if task.data else None


def asked(score: Callable[..., Any], *arguments: Any) -> float:
    """What a scoring function of the user says. Raises `InfrastructureError` where it raises or says no number."""
    try:
        return float(score(*arguments))
    except Exception as error:
        raise InfrastructureError(f"the score could not be told: {named_reason(error)}") from error


def _sound(score: float) -> float:
    if not math.isfinite(score):
        raise InfrastructureError(f"the environment answers nonsense: score {score}")
    return score
