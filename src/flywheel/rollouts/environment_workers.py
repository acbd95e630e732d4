"""Where episodes are played: environments in this process, or in worker processes that may hang, crash and babble."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from flywheel.environments.protocol import Environment, Observation, Transition, World
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError
from flywheel.runtime.subprocesses import child_environment, python_command
from flywheel.trajectory import Task

LINE_BYTES = 1 << 26
"""The longest answer of a worker that is read."""
_OBSERVATION, _TRANSITION = TypeAdapter(Observation), TypeAdapter(Transition)


class EnvironmentWorker(Protocol):
    """One environment at a time. Raises `InfrastructureError` when it breaks."""

    async def reset(self, task: Task) -> Observation: ...

    async def step(self, action: str) -> Transition: ...


@dataclass(frozen=True, slots=True)
class InlineWorker:
    """An environment of this process."""

    environment: Environment

    async def reset(self, task: Task) -> Observation:
        return self.environment.reset(task)

    async def step(self, action: str) -> Transition:
        return sound(self.environment.step(action))


def inline_workers(world: World, count: int) -> list[InlineWorker]:
    """So many environments in this process."""
    return [InlineWorker(environment) for environment in world.environments(count)]


def sound(transition: Transition) -> Transition:
    """The transition, if its numbers are possible. Raises `InfrastructureError`."""
    if not (math.isfinite(transition.reward) and 0 <= transition.progress <= 1):
        raise InfrastructureError(
            f"the environment answers nonsense: reward {transition.reward}, progress {transition.progress}"
        )
    return transition


@dataclass(slots=True)
class _Asked:
    what: str
    answer: asyncio.Future[Any]


class WorkerProcess:
    """A process with a world of its own and some environments in it, restarted when it hangs or dies.

    It answers in order, so the oldest question is the one that hangs. A restart breaks the
    episodes of all its environments.
    """

    def __init__(self, environment: str, parameters: str, timeout: float) -> None:
        self._command = python_command("-m", "flywheel.rollouts.worker", environment, parameters)
        self._timeout = timeout
        self._process: asyncio.subprocess.Process | None = None
        self._asked: list[_Asked] = []
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self.generation = 0
        """How often it was started."""
        self._end = "the environment's worker was not started"
        """How the last process ended, as those hear it who ask afterwards."""

    async def ready(self) -> None:
        """Start the process if it does not run."""
        async with self._starting:
            if self._process is not None:
                return
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=child_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                limit=LINE_BYTES,
            )
            self.generation += 1
            self._reading = asyncio.create_task(self._read(self._process))

    async def ask(self, what: str, slot: int, argument: Any) -> Any:
        """The answer of one environment, as plain data."""
        if self._process is None:
            raise self.lost()
        assert self._process.stdin is not None
        asked = _Asked(what, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        self._process.stdin.write(json.dumps([what, slot, argument]).encode() + b"\n")
        return await asked.answer

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hand out answers until the process is silent for too long or dies; then end it and break what waits."""
        problem = "was stopped"
        try:
            while True:
                line = await self._line(process)
                if not line:
                    problem = f"died with code {await process.wait()}"
                    return
                if self._asked:
                    _settle(self._asked.pop(0), line)
        except TimeoutError:
            problem = f"did not answer within {self._timeout:g} s"
        except ValueError:
            problem = f"answered more than {LINE_BYTES >> 20} MiB"
        finally:
            self._process = None
            lost, self._asked = self._asked, []
            self._end = f"{'a neighbour' if lost else 'the environment'}'s worker {problem}"
            await _end(process)
            for place, asked in enumerate(lost):
                why = f"the environment {problem} at {asked.what}" if place == 0 else f"a neighbour's worker {problem}"
                if not asked.answer.done():
                    asked.answer.set_exception(InfrastructureError(f"{why}; it was restarted"))

    def lost(self) -> InfrastructureError:
        """Why there is no answer for one who asks after the end."""
        return InfrastructureError(f"{self._end}; it was restarted")

    async def _line(self, process: asyncio.subprocess.Process) -> bytes:
        """The next line; an idle worker may be silent for ever, one that was asked something may not."""
        assert process.stdout is not None
        pending = asyncio.create_task(process.stdout.readline())
        try:
            while not pending.done():
                asked = self._asked[0] if self._asked else None
                done, _ = await asyncio.wait([pending], timeout=self._timeout)
                if not done and asked is not None and self._asked and self._asked[0] is asked:
                    raise TimeoutError
            return pending.result()
        finally:
            pending.cancel()

    async def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading


def _settle(asked: _Asked, line: bytes) -> None:
    if asked.answer.done():
        return
    try:
        kind, value = json.loads(line)
        if kind == "refused":
            asked.answer.set_exception(ConfigError(str(value)))
        elif kind == "broken":
            asked.answer.set_exception(InfrastructureError(str(value)))
        elif kind == "missing":
            asked.answer.set_exception(PrerequisiteError(str(value)))
        else:
            asked.answer.set_result(value)
    except (ValueError, TypeError):
        asked.answer.set_exception(InfrastructureError(f"the environment's worker babbles: {line[:80]!r}"))


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdin.close()
    await process.wait()


@dataclass(slots=True)
class RemoteWorker:
    """One environment of a worker."""

    process: WorkerProcess
    number: int
    generation: int = 0

    async def reset(self, task: Task) -> Observation:
        await self.process.ready()
        self.generation = self.process.generation
        try:
            return _OBSERVATION.validate_python(await self.process.ask("reset", self.number, asdict(task)))
        except ValidationError as error:
            raise _nonsense(error) from error

    async def step(self, action: str) -> Transition:
        if self.generation != self.process.generation:
            raise self.process.lost()
        try:
            return sound(_TRANSITION.validate_python(await self.process.ask("step", self.number, action)))
        except ValidationError as error:
            raise _nonsense(error) from error


def _nonsense(error: ValidationError) -> InfrastructureError:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return InfrastructureError(f"the environment answers nonsense: {where}: {first['msg']}")


@asynccontextmanager
async def remote_workers(
    environment: str, parameters: str, *, environments: int, processes: int, timeout: float
) -> AsyncIterator[Sequence[RemoteWorker]]:
    """So many environments, dealt out to processes; `timeout`: seconds after which an answer is given up."""
    crew = [WorkerProcess(environment, parameters, timeout) for _ in range(min(processes, environments))]
    try:
        yield [RemoteWorker(crew[number % len(crew)], number // len(crew)) for number in range(environments)]
    finally:
        await asyncio.gather(*(one.stop() for one in crew))
