"""A Ray cluster (https://docs.ray.io), for whoever has more machines than one.

What is sent between its processes is pickled by Ray: a cluster is one's own machines, never a place to take data from.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from typing import Any

from flywheel.errors import FlywheelError, InfrastructureError, PrerequisiteError

RESTARTS = 3
"""How often an actor whose process or machine is gone is started elsewhere, and its work done again."""


@contextmanager
def actors(address: str, count: int, kind: type, *arguments: object) -> Iterator[list[Any]]:
    """So many actors of a class, each with one core, made of the same arguments; they end with the context.

    Raises `PrerequisiteError` where no cluster answers.
    """
    with _joined(address) as ray:
        shared = [ray.put(one) for one in arguments]  # held here, so that an actor that starts again finds them
        remote = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Actor)
        made = [remote.remote(kind, shared) for _ in range(count)]
        try:
            yield made
        finally:
            for one in made:
                ray.kill(one)


class _Actor:
    """Makes an object over there and calls its methods."""

    def __init__(self, kind: type, shared: list[Any]) -> None:
        import ray

        self._made = kind(*ray.get(shared))

    def call(self, method: str, item: Any) -> Any:
        return getattr(self._made, method)(item)


def in_order(made: list[Any], method: str, items: Iterable[Any]) -> Iterator[Any]:
    """Answers in the order of the items, with a bounded number of them under way."""
    waiting: deque[Any] = deque()
    turns = iter(items)
    number = 0

    def submit() -> None:
        nonlocal number
        for item in islice(turns, 1):
            waiting.append(made[number % len(made)].call.remote(method, item))
            number += 1

    for _ in range(2 * len(made)):
        submit()
    while waiting:
        yield _told(waiting.popleft())
        submit()


def as_they_come(made: list[Any], method: str, items: Iterable[Any], heard: Callable[[Any], None]) -> None:
    """Hand items to whoever is free, and hear each answer as soon as it is there."""
    import ray

    turns, busy = iter(items), dict[Any, Any]()

    def submit(actor: Any) -> None:
        for item in islice(turns, 1):
            busy[actor.call.remote(method, item)] = actor

    for one in made:
        submit(one)
    while busy:
        for done in ray.wait(list(busy), num_returns=1)[0]:
            actor = busy.pop(done)
            heard(_told(done))
            submit(actor)


def _told(answer: Any) -> Any:
    """An answer; what Flywheel raised over there is raised here, and a cluster that failed is infrastructure."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, FlywheelError):
            raise error.cause from None
        raise
    except RayError as error:
        raise InfrastructureError(f"the Ray cluster failed: {str(error).strip().splitlines()[0]}") from error


def cores(address: str) -> int:
    """How many cores a cluster has. Raises `PrerequisiteError` where none answers."""
    with _joined(address) as ray:
        return int(ray.cluster_resources().get("CPU", 0))


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """The ray module, connected, without telemetry. Its own words go to stderr, stdout belongs to results."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise PrerequisiteError("cluster.ray needs Ray; pip install 'trajectory-flywheel[ray]'") from None
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield ray
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="flywheel")
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise PrerequisiteError(f"no Ray cluster at {address} ({reason}); start one: ray start --head") from None
        try:
            yield ray
        finally:
            ray.shutdown()
