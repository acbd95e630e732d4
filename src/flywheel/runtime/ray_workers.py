"""Workers on a Ray cluster (https://docs.ray.io), for those who have several machines.

What is sent between its processes is pickled by Ray: a cluster is one's own machines, never a place to take data from.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from flywheel.errors import FlywheelError, InfrastructureError, PrerequisiteError, reason_of
from flywheel.runtime.workers import Caller, Report

START_SECONDS, GRACE_SECONDS, CLOSE_SECONDS = 300.0, 30.0, 10.0
"""How long to wait for the first actor, then for the others, and in the end for what they hold."""
KNOCK_SECONDS = 5.0
RESTARTS = 3
"""How often an actor whose process or machine is gone is started elsewhere, and its work done again."""


@contextmanager
def ray_workers(address: str, count: int, make: Callable[..., object], *arguments: object) -> Iterator[list[RayWorker]]:
    """Up to so many actors, each with one core; they end with the context, and so does what the objects hold, if they
    have a `close`.

    No more than the cluster has cores. Raises `PrerequisiteError` where no cluster answers, `InfrastructureError` where
    no core is free for minutes, and what making an object raises.
    """
    with _joined(address) as ray:
        shared = [ray.put(argument) for argument in arguments]  # held here, for actors that start again
        remote = ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Actor)
        most = max(1, int(ray.cluster_resources().get("CPU", 0)))
        actors = [remote.remote(make, shared) for _ in range(min(count, most))]
        try:
            yield [RayWorker(actor) for actor in _ready(ray, actors)]
        finally:
            ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=CLOSE_SECONDS)
            for actor in actors:
                ray.kill(actor)


def _ready(ray: Any, actors: list[Any]) -> list[Any]:
    """The actors that are ready: at least one, and those that follow within `GRACE_SECONDS`."""
    answers = {actor.ready.remote(): actor for actor in actors}
    first, _ = ray.wait(list(answers), num_returns=1, timeout=START_SECONDS)
    if not first:
        raise InfrastructureError(f"no core of the Ray cluster was free for {START_SECONDS:.0f} s; see: ray status")
    done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=GRACE_SECONDS)
    for answer in done:
        try:
            ray.get(answer)
        except Exception as error:
            raise _raised_there(error) from None
    return [answers[answer] for answer in done]


@dataclass(frozen=True, slots=True)
class RayWorker:
    """An actor of a cluster. What its calls report arrives with their answers, and none of them finishes early."""

    actor: Any

    def submit(self, method: str, *arguments: Any, report: Report | None = None) -> Future[Any]:
        """`Worker.submit`."""
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()

        def settle(call: Future[Any]) -> None:
            try:
                value, reports = call.result()
                for reported in reports:
                    assert report is not None
                    report(reported)
            except BaseException as error:
                answer.set_exception(_raised_there(error))
            else:
                answer.set_result(value)

        self.actor.call.remote(method, arguments, report is not None).future().add_done_callback(settle)
        return answer


class _Actor:
    """Makes an object over there and calls its methods. What making it raises is raised by the call that needs it."""

    def __init__(self, make: Callable[..., object], shared: list[Any]) -> None:
        self._make, self._shared = make, shared
        self._made: Any = None

    def ready(self) -> None:
        import ray

        if self._made is None:
            self._made = self._make(*ray.get(self._shared))

    def call(self, method: str, arguments: tuple[Any, ...], reports: bool) -> tuple[Any, list[Any]]:
        self.ready()
        caller = _Reports()
        return getattr(self._made, method)(*arguments, *((caller,) if reports else ())), caller.values

    def close(self) -> None:
        if hasattr(self._made, "close"):
            self._made.close()


class _Reports(Caller):
    def __init__(self) -> None:
        self.values: list[Any] = []

    def report(self, value: Any) -> None:
        self.values.append(value)


def _raised_there(error: BaseException) -> BaseException:
    """What Flywheel raised over there is raised here, and a cluster that failed is infrastructure."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, FlywheelError) else error
    if isinstance(error, RayError):
        return InfrastructureError(f"the Ray cluster failed: {reason_of(error)[:300]}")
    return error


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
    """The ray module, connected, without telemetry. Its messages go to stderr, stdout belongs to results."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of the arguments that `ray_workers` holds
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
