"""Work in other processes: objects made there, calls handed to them, answers as they come.

One interface and two places: processes of this machine, or actors of a Ray cluster. A worker that dies is an
infrastructure failure, and all workers end with the process that started them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

Report = Callable[[Any], bool]
"""Receives what a call reports before it is done; False asks the call to finish early."""


class Worker(Protocol):
    """An object in another process, which runs one call at a time in the order of their submission."""

    def submit(self, method: str, *arguments: Any, report: Report | None = None) -> Future[Any]:
        """Call a method over there. What it raises, the future raises; `InfrastructureError` where the worker died.

        With `report`, the method gets a `Caller` after its arguments.
        """
        ...


class Caller:
    """What a method that runs elsewhere knows of its caller."""

    def report(self, value: Any) -> None:
        """Hand over something before the answer."""

    def stopped(self) -> bool:
        """Should the call finish early?"""
        return False


@contextmanager
def open_workers(count: int, make: Callable[..., object], *arguments: object, ray: str = "") -> Iterator[list[Worker]]:
    """So many objects made of the same arguments, each in a process of this machine or, with the address of a Ray
    cluster, in up to so many of its actors. What making an object raises, each call raises."""
    if ray:
        from flywheel.runtime.ray_workers import ray_workers

        with ray_workers(ray, count, make, *arguments) as actors:
            yield [*actors]
        return
    from flywheel.runtime.local_workers import LocalWorker

    workers = [LocalWorker(make, *arguments, share=count, noun="a worker") for _ in range(count)]
    try:
        yield [*workers]
    finally:
        for worker in workers:
            worker.stop()


def in_order(workers: Sequence[Worker], method: str, items: Iterable[Any]) -> Iterator[Any]:
    """Answers in the order of the items, of which no more than two a worker are under way."""
    remaining = iter(items)
    calls: deque[tuple[Worker, Future[Any]]] = deque()

    def load(worker: Worker) -> int:
        return sum(worker is other and not call.done() for other, call in calls)

    def submit(count: int) -> None:
        for item in islice(remaining, count):
            worker = min(workers, key=load)
            calls.append((worker, worker.submit(method, item)))

    submit(2 * len(workers))
    while calls:
        yield calls.popleft()[1].result()
        submit(1)


def as_completed(
    workers: Sequence[Worker], method: str, items: Iterable[Any], report: Report | None = None
) -> Iterator[Any]:
    """Answers as they come; a worker that is done gets the next item."""
    remaining = iter(items)
    busy = {
        worker.submit(method, item, report=report): worker for worker, item in zip(workers, remaining, strict=False)
    }
    while busy:
        for call in wait(busy, return_when=FIRST_COMPLETED).done:
            worker, answer = busy.pop(call), call.result()
            for item in islice(remaining, 1):
                busy[worker.submit(method, item, report=report)] = worker
            yield answer
