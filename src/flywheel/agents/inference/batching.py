"""Turns that wait for one model are decided together: a batch forms while the batch before it is computed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

LOOK_SECONDS = 0.005
"""How often a batch that waits looks whether anybody could still come."""
_T = TypeVar("_T")
_Answer = TypeVar("_Answer")
_Asked = TypeVar("_Asked", contravariant=True)
_Said = TypeVar("_Said", covariant=True)


class Decider(Protocol[_Asked, _Said]):
    """Answers many at once: a policy its turns, a model its prompts."""

    def act(self, asked: Sequence[_Asked], /) -> Sequence[_Said]: ...


@dataclass(slots=True)
class _Waiting:
    decider: Decider[Any, Any]
    asked: Any
    future: asyncio.Future[tuple[Any, float]]


class Batcher:
    """Asks deciders in one thread of its own, never two at once.

    A batch waits for stragglers at most as long as the last batch took to decide (`patience`): to wait longer would
    cost more than a fuller batch can win. `expected`: for how many turns it waits, so that it does not wait in vain.
    """

    def __init__(self, expected: Callable[[], int]) -> None:
        self._expected = expected
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self.patience = 0.0
        self.busy = 0.0
        """Seconds spent in deciders so far."""

    async def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run something in the deciders' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, function, *arguments)

    async def decide(self, decider: Decider[_T, _Answer], asked: _T) -> tuple[_Answer, float]:
        """The answer, and its share of the seconds that the batch took."""
        waiting = _Waiting(decider, asked, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.future

    async def run(self) -> None:
        """Decide batch after batch until cancelled."""
        try:
            while True:
                await self._gather()
                self._waiting = [request for request in self._waiting if not request.future.done()]
                if not self._waiting:
                    continue
                decider = self._waiting[0].decider
                batch = [request for request in self._waiting if request.decider is decider]
                self._waiting = [request for request in self._waiting if request.decider is not decider]
                await self._answer(decider, batch)
        finally:
            self._thread.shutdown(wait=False)

    async def _gather(self) -> None:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while len(self._waiting) < self._expected() and loop.time() < deadline:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, loop.time() + LOOK_SECONDS)):
                    await self._arrived.wait()

    async def _answer(self, decider: Decider[Any, Any], batch: Sequence[_Waiting]) -> None:
        began = time.perf_counter()
        try:
            answers = await self.call(decider.act, [request.asked for request in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} questions")
        except Exception as error:
            for request in batch:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        self.patience = time.perf_counter() - began
        for request, answer in zip(batch, answers, strict=True):
            if not request.future.done():
                request.future.set_result((answer, self.patience / len(batch)))

    def _timed(self, function: Callable[..., _T], *arguments: object) -> _T:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.busy += time.perf_counter() - began
