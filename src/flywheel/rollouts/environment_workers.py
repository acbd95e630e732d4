"""Where episodes are played: environments in this process, or in worker processes that may hang and crash."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from flywheel.environments.capabilities import Advice, AdvisesLive
from flywheel.environments.catalog import open_world
from flywheel.environments.protocol import Environment, Observation, Transition, World
from flywheel.errors import FlywheelError, InfrastructureError, named_reason
from flywheel.runtime.local_workers import LocalWorker, WorkerProcess
from flywheel.trajectory import Task

Answer = TypeVar("Answer")
_OBSERVATION, _TRANSITION = TypeAdapter(Observation), TypeAdapter(Transition)
_ADVICE: TypeAdapter[Advice | None] = TypeAdapter(Advice | None)


class EnvironmentWorker(Protocol):
    """One environment at a time. Raises `InfrastructureError` when it breaks."""

    async def reset(self, task: Task) -> Observation: ...

    async def step(self, action: str) -> Transition: ...

    async def advise(self) -> Advice | None:
        """What the environment's live expert would do; None without one."""
        ...


@dataclass(frozen=True, slots=True)
class InlineWorker:
    """An environment of this process."""

    environment: Environment

    async def reset(self, task: Task) -> Observation:
        return _readable(_played(lambda: self.environment.reset(task), Observation))

    async def step(self, action: str) -> Transition:
        transition = sound(_played(lambda: self.environment.step(action), Transition))
        _readable(transition.observation)
        return transition

    async def advise(self) -> Advice | None:
        environment = self.environment
        return _played(environment.advise, Advice | None) if isinstance(environment, AdvisesLive) else None


def inline_workers(world: World, count: int) -> list[InlineWorker]:
    """So many environments in this process."""
    return [InlineWorker(environment) for environment in world.environments(count)]


def sound(transition: Transition) -> Transition:
    """The transition, if its numbers are possible. Raises `InfrastructureError`."""
    reward, progress = transition.reward, transition.progress
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (reward, progress))
    if not numbers or not 0 <= progress <= 1:
        raise InfrastructureError(f"the environment answers nonsense: reward {reward}, progress {progress}")
    return transition


def _readable(seen: Observation) -> Observation:
    """The observation, if it is text. Raises `InfrastructureError`."""
    texts = (seen.text, seen.feedback, seen.document, seen.location, seen.state_key, *(seen.valid_actions or ()))
    if not all(isinstance(text, str) for text in texts):
        wrong = next(text for text in texts if not isinstance(text, str))
        raise InfrastructureError(f"the environment answers nonsense: {wrong!r:.80} in place of text")
    return seen


def _played(play: Callable[[], Answer], kind: Any) -> Answer:
    """What the environment answers, if it is that. Whatever it raises breaks the episode, and says so."""
    try:
        answer = play()
    except FlywheelError:
        raise
    except Exception as error:
        raise InfrastructureError(f"the environment raised {named_reason(error)}") from error
    if not isinstance(answer, kind):
        wanted = getattr(kind, "__name__", "advice")
        raise InfrastructureError(f"the environment answers nonsense: {answer!r:.80} in place of {wanted}")
    return answer


class EnvironmentHost:
    """A world in a worker process, which ends with it, and its environments by number. Answers are JSON: no object of
    theirs travels."""

    def __init__(self, environment: str, parameters: str) -> None:
        self._opened = open_world(environment, parameters)
        self._world = self._opened.__enter__()
        self._environments: list[Environment] = []

    def reset(self, slot: int, task: Task) -> str:
        if slot >= len(self._environments):
            self._environments += self._world.environments(slot + 1)[len(self._environments) :]
        return json.dumps(asdict(_played(lambda: self._environments[slot].reset(task), Observation)))

    def step(self, slot: int, action: str) -> str:
        return json.dumps(asdict(_played(lambda: self._environments[slot].step(action), Transition)))

    def advise(self, slot: int) -> str:
        environment = self._environments[slot]
        advice = _played(environment.advise, Advice | None) if isinstance(environment, AdvisesLive) else None
        return json.dumps(None if advice is None else asdict(advice))


class RemoteWorker:
    """One environment of a host in a worker process; the end of the process breaks the episodes of all of them."""

    def __init__(self, host: LocalWorker, slot: int) -> None:
        self._host, self._slot = host, slot
        self.process: WorkerProcess | None = None
        """The process that plays the episode."""

    async def reset(self, task: Task) -> Observation:
        self.process = self._host.process()
        return _parsed(_OBSERVATION, await self._ask(self.process, "reset", task))

    async def step(self, action: str) -> Transition:
        assert self.process is not None, "reset comes first"
        return sound(_parsed(_TRANSITION, await self._ask(self.process, "step", action)))

    async def advise(self) -> Advice | None:
        assert self.process is not None, "reset comes first"
        return _parsed(_ADVICE, await self._ask(self.process, "advise"))

    async def _ask(self, process: WorkerProcess, method: str, *arguments: Task | str) -> str:
        answer: str = await asyncio.wrap_future(process.submit(method, self._slot, *arguments))
        return answer


def _parsed(adapter: TypeAdapter[Answer], answer: str) -> Answer:
    try:
        return adapter.validate_json(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InfrastructureError(f"the environment answers nonsense: {where}: {first['msg']}") from error


@asynccontextmanager
async def remote_workers(
    environment: str, parameters: str, *, environments: int, processes: int, timeout: float
) -> AsyncIterator[Sequence[RemoteWorker]]:
    """So many environments, dealt out to processes; `timeout`: seconds after which an answer is given up."""
    hosts = [
        LocalWorker(EnvironmentHost, environment, parameters, timeout=timeout, share=processes, noun="the environment")
        for _ in range(min(processes, environments))
    ]
    try:
        yield [RemoteWorker(hosts[number % len(hosts)], number // len(hosts)) for number in range(environments)]
    finally:
        for host in hosts:
            host.stop()
