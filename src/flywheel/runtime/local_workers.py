"""Workers of this machine: a process each, restarted by the first call after it died or hung.

    python -m flywheel.runtime.local_workers CLASS DESCRIPTOR

Calls and answers travel through a pair of sockets, pickled: nothing but this process and its own children is at either
end. What a worker prints goes to stderr. When the socket closes, the worker ends with all that it has started.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from flywheel.errors import FlywheelError, InfrastructureError, named_reason
from flywheel.runtime.subprocesses import child_environment, python_command
from flywheel.runtime.workers import Caller, Report

ANSWER, ERROR, REPORT = "answer", "error", "report"
STOP = "stop"


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    future: Future[Any]
    report: Report | None


class _Channel:
    """Pickled messages over a socket, for one reader and several writers."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._incoming, self._sending = end, end.makefile("rb"), threading.Lock()

    def send(self, message: Any) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> Any:
        """The next message. Raises `EOFError` or `OSError` when the other end is gone."""
        return pickle.load(self._incoming)

    def close(self) -> None:
        self._incoming.close()
        self._socket.close()


class WorkerProcess:
    """An object in a process of its own, until that dies, hangs or is stopped. Its end breaks the calls that wait.

    `timeout`: seconds after which a call is given up and the process ended. `share`: among how many such processes the
    cores are shared. `noun`: what an error calls the object.
    """

    def __init__(
        self,
        make: Callable[..., object],
        *arguments: object,
        timeout: float | None = None,
        share: int = 1,
        noun: str = "a worker",
    ) -> None:
        self._noun, self._owner, self._problem = noun, noun, ""
        self._calls: list[_Call] = []
        self._lock = threading.Lock()
        self.ended = threading.Event()
        ours, theirs = socket.socketpair()
        with theirs:
            name = getattr(make, "__name__", "worker")
            self.popen = subprocess.Popen(
                python_command("-m", __name__, name, str(theirs.fileno())),
                env=child_environment(OMP_NUM_THREADS=str(max(1, available_cores() // share))),
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = _Channel(ours)
        self._send((make, arguments))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if timeout is not None:
            threading.Thread(target=self._watch, args=(timeout,), daemon=True).start()

    def submit(self, method: str, *arguments: Any, report: Report | None = None) -> Future[Any]:
        """`Worker.submit`."""
        call = _Call(method, Future(), report)
        call.future.set_running_or_notify_cancel()
        with self._lock:
            if self.ended.is_set():
                call.future.set_exception(InfrastructureError(f"{self._owner}'s worker {self._problem}"))
            else:
                self._send((method, arguments, report is not None))
                self._calls.append(call)
        return call.future

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._end("was stopped")
        self._reader.join()

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has just ended, and the reader says so
            self._channel.send(message)

    def _end(self, problem: str) -> None:
        if self.ended.is_set():
            return
        self._problem = self._problem or problem
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def _read(self) -> None:
        """Hand out answers until the process ends; then break what waits."""
        failure: BaseException | None = None
        try:
            while True:
                self._settle(*self._channel.receive())
        except (EOFError, OSError, pickle.UnpicklingError):
            pass  # it ended, perhaps in the middle of a message
        except BaseException as error:
            failure = error
            self._end("was stopped")
        self.popen.wait()
        with self._lock:
            self._end(f"died with code {self.popen.returncode}")
            self._owner = "a neighbour" if self._calls else self._noun
            self.ended.set()
            self._channel.close()
        why = f"{self._noun} {self._problem} at {self._calls[0].method}" if self._calls else ""
        for call in self._calls:
            call.future.set_exception(failure or InfrastructureError(why))
            why = f"a neighbour's worker {self._problem}"

    def _watch(self, timeout: float) -> None:
        """End the process when a call has been the oldest for too long."""
        while not self.ended.is_set():
            oldest = self._oldest()
            self.ended.wait(timeout)
            if oldest is not None and self._oldest() is oldest:
                self._end(f"did not answer within {timeout:g} s")
                return

    def _oldest(self) -> _Call | None:
        with self._lock:
            return self._calls[0] if self._calls else None

    def _settle(self, kind: str, value: Any) -> None:
        """Pass on an answer, or a report; what the receiver of a report raises ends the process and fails the call."""
        with self._lock:
            call = self._calls[0] if kind == REPORT else self._calls.pop(0)
        if kind == ERROR:
            call.future.set_exception(value)
        elif kind == ANSWER:
            call.future.set_result(value)
        elif call.report is not None and not call.report(value):
            self._send(STOP)


class LocalWorker:
    """A worker of this machine: the first call after its process ended starts another. Parameters as `WorkerProcess`
    has them."""

    def __init__(
        self, make: Callable[..., object], *arguments: object, timeout: float | None = None, share: int = 1, noun: str
    ) -> None:
        self._start = partial(WorkerProcess, make, *arguments, timeout=timeout, share=share, noun=noun)
        self._process: WorkerProcess | None = None

    def process(self) -> WorkerProcess:
        """The process, started if none runs."""
        if self._process is None or self._process.ended.is_set():
            self._process = self._start()
        return self._process

    def submit(self, method: str, *arguments: Any, report: Report | None = None) -> Future[Any]:
        """`Worker.submit`."""
        return self.process().submit(method, *arguments, report=report)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.stop()


def available_cores() -> int:
    """How many cores this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the first of a list is the outermost
    return int(limit) if limit.isdigit() else os.cpu_count() or 1


class _LocalCaller(Caller):
    def __init__(self, channel: _Channel, stopped: threading.Event) -> None:
        self._channel, self._stopped = channel, stopped

    def report(self, value: Any) -> None:
        self._channel.send((REPORT, value))

    def stopped(self) -> bool:
        return self._stopped.is_set()


def main(descriptor: int) -> None:
    """A worker's process: answer until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = _Channel(socket.socket(fileno=descriptor))
    make, made_of = channel.receive()
    calls: queue.Queue[tuple[str, tuple[Any, ...], bool]] = queue.Queue()
    stopped = threading.Event()
    threading.Thread(target=_listen, args=(channel, calls, stopped), daemon=True).start()
    made: Any = None
    while True:
        method, arguments, reports = calls.get()
        try:
            if made is None:
                made = make(*made_of)
            caller = (_LocalCaller(channel, stopped),) if reports else ()
            answer = getattr(made, method)(*arguments, *caller)
            stopped.clear()
            channel.send((ANSWER, answer))
        except Exception as error:
            stopped.clear()
            channel.send((ERROR, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error if it can be sent, with where it was raised unless it explains itself."""
    if not isinstance(error, FlywheelError):
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return InfrastructureError(named_reason(error))
    return error


def _listen(channel: _Channel, calls: queue.Queue[Any], stopped: threading.Event) -> None:
    with suppress(EOFError, OSError):
        while True:
            message = channel.receive()
            if message == STOP:
                stopped.set()
            else:
                calls.put(message)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[2]))
