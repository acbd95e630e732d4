"""A Ray cluster (https://docs.ray.io), for whoever has more machines than one.

What is sent between its processes is pickled by Ray: a cluster is one's own machines, never a place to take data from.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from typing import Any

from flywheel.errors import FlywheelError, InfrastructureError, PrerequisiteError, reason_of

START_SECONDS, GRACE_SECONDS, CLOSE_SECONDS = 300.0, 30.0, 10.0
"""How long to wait for the first actor, then for the others, and in the end for what they hold."""
KNOCK_SECONDS = 5.0
RESTARTS = 3
"""How often an actor whose process or machine is gone is started elsewhere, and its work done again."""


@contextmanager
def actors(address: str, count: int, kind: type, *arguments: object) -> Iterator[list[Any]]:
    """Up to so many actors of a class, each with one core, made of the same arguments; they end with the context, and
    so does what the objects hold, if they have a `close`.

    No more than the cluster has cores. Raises `PrerequisiteError` where no cluster answers, `InfrastructureError` where
    no core is free for minutes, and what making an object raises.
    """
    with _joined(address) as ray:
        shared = [ray.put(one) for one in arguments]  # held here, so that an actor that starts again finds them
        remote = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Actor)
        most = max(1, int(ray.cluster_resources().get("CPU", 0)))
        started = [remote.remote(kind, shared) for _ in range(min(count, most))]
        try:
            yield _ready(ray, started)
        finally:
            ray.wait([one.close.remote() for one in started], num_returns=len(started), timeout=CLOSE_SECONDS)
            for one in started:
                ray.kill(one)


def _ready(ray: Any, started: list[Any]) -> list[Any]:
    """The actors that have a core and are made, as soon as there is one of them and the others had a moment."""
    answers = {one.ready.remote(): one for one in started}
    first, _ = ray.wait(list(answers), num_returns=1, timeout=START_SECONDS)
    if not first:
        raise InfrastructureError(f"no core of the Ray cluster was free for {START_SECONDS:.0f} s; see: ray status")
    done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=GRACE_SECONDS)
    for answer in done:
        _told(answer)
    return [answers[answer] for answer in done]


class _Actor:
    """Makes an object over there and calls its methods. What making it raises is told by the call that needs it."""

    def __init__(self, kind: type, shared: list[Any]) -> None:
        self._kind, self._shared = kind, shared
        self._made: Any = None

    def ready(self) -> None:
        import ray

        if self._made is None:
            self._made = self._kind(*ray.get(self._shared))

    def call(self, method: str, item: Any) -> Any:
        self.ready()
        return getattr(self._made, method)(item)

    def close(self) -> None:
        if hasattr(self._made, "close"):
            self._made.close()


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
        raise InfrastructureError(f"the Ray cluster failed: {reason_of(error)[:300]}") from error


def cores(address: str) -> int:
    """How many cores a cluster has. Raises `PrerequisiteError` where none answers."""
    with _joined(address) as ray:
        return int(ray.cluster_resources().get("CPU", 0))


def _knock(address: str) -> None:
    """Raise `PrerequisiteError` where nothing listens; Ray itself would try for minutes. `auto` names no place."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        reason = reason_of(error)
        raise PrerequisiteError(f"no Ray cluster at {address} ({reason}); start one: ray start --head") from None


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """The ray module, connected, without telemetry. Its own words go to stderr, stdout belongs to results."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it fears for the arguments that `actors` holds
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without a GPU keep CUDA_VISIBLE_DEVICES
    try:
        import ray
    except ModuleNotFoundError:
        raise PrerequisiteError("cluster.ray needs Ray; pip install 'trajectory-flywheel[ray]'") from None
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield ray
            return
        _knock(address)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="flywheel")
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = reason_of(error)[:200]
            raise PrerequisiteError(f"no Ray cluster at {address} ({reason}); start one: ray start --head") from None
        try:
            yield ray
        finally:
            ray.shutdown()
