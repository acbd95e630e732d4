"""Turns that wait for one model are decided together: a batch forms while the batch before it is computed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from flywheel.agents.policy import Decision, Policy, Turn

_T = TypeVar("_T")


@dataclass(slots=True)
class _Waiting:
    policy: Policy
    turn: Turn
    future: asyncio.Future[tuple[Decision, float]]


class Batcher:
    """Asks policies in one thread of its own, turn by turn or together, never two at once.

    A batch waits for stragglers at most as long as the last batch took to decide: to wait longer would cost more than
    a fuller batch can win. `expected`: how many turns could still come, so that nobody waits for nobody.
    """

    def __init__(self, expected: Callable[[], int]) -> None:
        self._expected = expected
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._patience = 0.0
        self.busy = 0.0
        """Seconds spent in policies so far."""

    async def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run something in the policies' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, function, *arguments)

    async def decide(self, policy: Policy, turn: Turn) -> tuple[Decision, float]:
        """The policy's decision, and its share of the seconds that the batch took."""
        waiting = _Waiting(policy, turn, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.future

    async def run(self) -> None:
        """Decide batch after batch until cancelled."""
        try:
            while True:
                await self._gather()
                policy = self._waiting[0].policy
                batch = [one for one in self._waiting if one.policy is policy]
                self._waiting = [one for one in self._waiting if one.policy is not policy]
                await self._answer(policy, batch)
        finally:
            self._thread.shutdown(wait=False)

    async def _gather(self) -> None:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while len(self._waiting) < self._expected() and loop.time() < deadline:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _answer(self, policy: Policy, batch: Sequence[_Waiting]) -> None:
        began = time.perf_counter()
        try:
            decisions = await self.call(policy.act, [one.turn for one in batch])
        except Exception as error:
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        self._patience = time.perf_counter() - began
        for one, decision in zip(batch, decisions, strict=True):
            if not one.future.done():
                one.future.set_result((decision, self._patience / len(batch)))

    def _timed(self, function: Callable[..., _T], *arguments: object) -> _T:
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.busy += time.perf_counter() - began
