"""Workers of this machine: answers in order or as they come, errors across processes, and no worker left behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flywheel.errors import ContaminationError, InfrastructureError
from flywheel.runtime.workers import Caller, as_completed, in_order, open_workers

ROOT = Path(__file__).parents[1]


class Counter:
    """What a worker is asked to do here."""

    def __init__(self, base: int) -> None:
        if base < 0:
            raise ContaminationError("no counter below zero")
        self.base = base

    def add(self, number: int) -> int:
        time.sleep(0.2 if number == 0 else 0)
        if number == 13:
            raise ContaminationError("thirteen")
        if number == 14:
            raise ValueError("fourteen")
        if number == 15:
            os._exit(5)
        return self.base + number

    def secret(self) -> object:
        """What cannot be sent."""
        return lambda: self.base

    def pid(self, _: int) -> int:
        return os.getpid()

    def count(self, most: int, caller: Caller) -> int:
        """Report number after number, until told to stop."""
        for number in range(most):
            caller.report(number)
            time.sleep(0.01)
            if caller.stopped():
                return number
        return most


def test_answers_come_in_the_order_of_the_items_or_as_they_are_ready() -> None:
    with open_workers(2, Counter, 100) as workers:
        assert list(in_order(workers, "add", range(9))) == [100 + number for number in range(9)]
        assert sorted(as_completed(workers, "add", range(9))) == [100 + number for number in range(9)]
        assert list(in_order(workers, "add", [])) == list(as_completed(workers, "add", [])) == []
        pids = set(in_order(workers, "pid", range(4)))
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_a_call_raises_is_raised_here_and_the_worker_goes_on() -> None:
    with open_workers(1, Counter, 1) as (worker,):
        with pytest.raises(ContaminationError, match=r"^thirteen$"):
            worker.submit("add", 13).result()
        with pytest.raises(ValueError, match=r"^fourteen") as raised:
            worker.submit("add", 14).result()
        assert "in add" in "".join(raised.value.__notes__)
        assert worker.submit("add", 1).result() == 2


def test_what_cannot_be_sent_fails_alone() -> None:
    with open_workers(1, Counter, 1) as (worker,):
        with pytest.raises((AttributeError, pickle.PicklingError)):
            worker.submit("secret").result()
        with pytest.raises((AttributeError, pickle.PicklingError)):
            worker.submit("add", lambda: 1)
        assert worker.submit("add", 1).result() == 2


def test_what_making_the_object_raises_each_call_raises() -> None:
    with open_workers(1, Counter, -1) as (worker,):
        for number in range(2):
            with pytest.raises(ContaminationError, match="below zero"):
                worker.submit("add", number).result()


def test_a_worker_that_dies_is_an_infrastructure_failure_and_the_next_call_starts_another() -> None:
    with open_workers(1, Counter, 1) as (worker,):
        died, behind = worker.submit("add", 15), worker.submit("add", 1)
        with pytest.raises(InfrastructureError, match=r"^a worker died with code 5 at add$"):
            died.result()
        with pytest.raises(InfrastructureError, match=r"^a neighbour's worker died with code 5$"):
            behind.result()
        assert worker.submit("add", 1).result() == 2


def test_a_call_reports_and_is_told_to_finish_early() -> None:
    seen: list[int] = []

    def report(number: int) -> bool:
        seen.append(number)
        return number < 5

    with open_workers(1, Counter, 1) as workers:
        (last,) = as_completed(workers, "count", [1000], report)
    assert 5 <= last < 1000
    assert seen == list(range(last + 1))


def test_what_a_report_raises_ends_the_call() -> None:
    def report(number: int) -> bool:
        raise KeyError(number)

    with open_workers(1, Counter, 1) as workers, pytest.raises(KeyError):
        list(as_completed(workers, "count", [1000], report))


PARENT = """
import sys
sys.path.append(sys.argv[1])
from flywheel.runtime.workers import in_order, open_workers
from tests.test_workers import Counter
with open_workers(2, Counter, 1) as workers:
    print(*set(in_order(workers, "pid", range(8))), flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_their_parent_however_it_goes() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert pids and all(psutil.pid_exists(pid) for pid in pids)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
