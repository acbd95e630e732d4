"""The Prefect server behind a run: an existing one by PREFECT_API_URL, else one of our own for as long as it is needed.

Our own server is a child process on the loopback interface that dies with its parent, even by kill -9. Its home
lies in the data directory; it sends no telemetry. Prefect's built-in ephemeral server is not used: Ctrl-C takes it
down before the run that it serves, and kill -9 leaves it behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from flywheel.errors import PrerequisiteError
from flywheel.flows.api import (
    ADDRESS,
    HOST,
    PULSE,
    START_SECONDS,
    addressed,
    answers,
    drain,
    home_in,
    quiet,
    running_api,
)
from flywheel.runtime.parent import die_with_parent
from flywheel.runtime.subprocesses import child_environment, python_command


@contextmanager
def prefect_api(data_dir: Path, port: int = 0, meanwhile: Callable[[], object] = lambda: None) -> Iterator[str]:
    """The address of a Prefect API: that of PREFECT_API_URL, of whoever serves the data directory now, or of a server
    of our own, which lives as long as the context. Port 0 takes a free one.

    Another port must be ours: raises `PrerequisiteError` where the data directory is served already. Call before
    anything imports prefect: it reads its settings then. `meanwhile` is called while a server starts; what it raises
    leaves nothing behind.
    """
    quiet()
    if existing := os.environ.get("PREFECT_API_URL"):
        meanwhile()
        yield existing
        return
    if served := running_api(data_dir):
        if port:
            raise PrerequisiteError(f"{data_dir} is served already, at {served}; stop that, or set another data_dir")
        with addressed(served):
            meanwhile()
            yield served
        return
    new = not (data_dir / "prefect").exists()
    home = home_in(data_dir)
    with ExitStack() as undo:
        if new:
            undo.callback(_remove, home)

        def prepare() -> None:
            meanwhile()
            undo.pop_all()

        with _sole_server(home):
            port = free_port(port)
            url = f"http://{HOST}:{port}/api"
            with addressed(url), _kept(home, port, url, prepare):
                (home / ADDRESS).write_text(url)
                try:
                    yield url
                finally:
                    (home / ADDRESS).unlink(missing_ok=True)
                    drain()


def _remove(home: Path) -> None:
    """A home that was made for nothing, and the data directory around it if there is nothing else."""
    shutil.rmtree(home, ignore_errors=True)
    with suppress(OSError):
        home.parent.rmdir()


@contextmanager
def _sole_server(home: Path) -> Iterator[None]:
    """One server at a time on a home: two would share its database."""
    lock = FileLock(home / "server.lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise PrerequisiteError(f"another flywheel starts a Prefect server in {home}; try again in a moment") from None


@contextmanager
def _kept(home: Path, port: int, url: str, meanwhile: Callable[[], object]) -> Iterator[None]:
    """A server that is started again whenever it dies, until the context ends; not where it ends by itself at first."""
    current, up = _start(home, port), False
    ending = threading.Event()

    def keep() -> None:
        nonlocal current
        while not ending.wait(PULSE):
            if current.poll() is not None and (up or current.returncode < 0):
                current = _start(home, port)

    keeper = threading.Thread(target=keep, name="prefect server", daemon=True)
    keeper.start()
    try:
        meanwhile()
        _wait(lambda: current, url, home / "server.log")
        up = True
        yield
    finally:
        ending.set()
        keeper.join()
        current.terminate()
        try:
            current.wait(10)
        except subprocess.TimeoutExpired:
            current.kill()
            current.wait()


def _start(home: Path, port: int) -> subprocess.Popen[bytes]:
    with (home / "server.log").open("ab") as log:
        return subprocess.Popen(
            python_command("-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)),
            env={name: value for name, value in child_environment().items() if name != "PYTHONWARNINGS"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )


def free_port(port: int) -> int:
    """The port itself if nothing listens there, a free one for 0. Raises `PrerequisiteError` if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PrerequisiteError(
                f"port {port} is taken ({error.strerror}); choose another with --set serve.port=N, "
                "or set PREFECT_API_URL to the server that runs there"
            ) from None
        free: int = probe.getsockname()[1]
        return free


def _wait(current: Callable[[], subprocess.Popen[bytes]], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (code := current().poll()) is not None and code >= 0:
            raise PrerequisiteError(f"the Prefect server ended at once; the reason is in {log}")
        if answers(url):
            return
        time.sleep(0.2)
    raise PrerequisiteError(f"the Prefect server did not answer within {START_SECONDS:.0f} s; see {log}")
