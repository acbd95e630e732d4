"""The Prefect server behind a run: an existing one by PREFECT_API_URL, else one of our own for as long as it is needed.

Our own server is a child process on the loopback interface that dies with its parent, even by kill -9. Its home
lies in the data directory; it sends no telemetry. Prefect's built-in ephemeral server is not used: Ctrl-C takes it
down before the run that it serves, and kill -9 leaves it behind.
"""

from __future__ import annotations

import http.client
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from flywheel.errors import PrerequisiteError, reason_of
from flywheel.flows.logs import LOGGER
from flywheel.orphans import die_with_parent

HOST = "127.0.0.1"
START_SECONDS = 120.0
PULSE = 0.5
"""Seconds between two looks at the server."""
ADDRESS = "address"
"""The file that says where the server of a data directory answers."""
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_CLIENT_MAX_RETRIES": "6",
}
"""No telemetry, no pickle, and no second copy of every log line on the console; the logs go to the server. Who held a
limit is known after a restart, too, and clients wait for a server that is started again."""


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
        with _addressed(served):
            meanwhile()
            yield served
        return
    new = not (data_dir / "prefect").exists()
    home = _home(data_dir)
    with ExitStack() as undo:
        if new:
            undo.callback(_remove, home)

        def prepare() -> None:
            meanwhile()
            undo.pop_all()

        with _sole_server(home):
            port = free_port(port)
            url = f"http://{HOST}:{port}/api"
            with _addressed(url), _kept(home, port, url, prepare):
                (home / ADDRESS).write_text(url)
                try:
                    yield url
                finally:
                    (home / ADDRESS).unlink(missing_ok=True)
                    _drain()


def _remove(home: Path) -> None:
    """A home that was made for nothing, and the data directory around it if there is nothing else."""
    shutil.rmtree(home, ignore_errors=True)
    with suppress(OSError):
        home.parent.rmdir()


@contextmanager
def _addressed(url: str) -> Iterator[None]:
    os.environ["PREFECT_API_URL"] = url
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]


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
def reached_api(data_dir: Path, port: int) -> Iterator[str]:
    """The address of the Prefect API that a running `flywheel serve`, or PREFECT_API_URL, offers.

    Raises `PrerequisiteError` where none answers, or where it refuses what is asked of it.
    """
    given = os.environ.get("PREFECT_API_URL", "")
    url = given or running_api(data_dir) or f"http://{HOST}:{port}/api"
    if not _answers(url):
        raise PrerequisiteError(
            f"no Prefect server answers at {url}; start one with: flywheel serve CONFIG, or set PREFECT_API_URL"
        )
    quiet()
    if not given:
        _home(data_dir)
    with nullcontext() if given else _addressed(url):
        try:
            yield url
        except Exception as error:
            from prefect.exceptions import PrefectHTTPStatusError

            if not isinstance(error, PrefectHTTPStatusError):
                raise
            raise PrerequisiteError(f"the Prefect server at {url} refused: {reason_of(error)[:300]}") from error
        finally:
            _drain()


@contextmanager
def heard(data_dir: Path) -> Iterator[bool]:
    """Is there a Prefect server that hears of what happens here? Within the context, events reach it.

    A server that should be there and does not answer is no reason to fail: False, and a warning in the log.
    """
    if not (os.environ.get("PREFECT_API_URL") or running_api(data_dir)):
        yield False
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(reached_api(data_dir, 0))
        except PrerequisiteError as error:
            LOGGER.warning("nobody hears", extra={"error": str(error)})
            yield False
            return
        yield True


def running_api(data_dir: Path) -> str:
    """The address of the server that serves this data directory now, or an empty string."""
    with suppress(OSError):
        url = (data_dir / "prefect" / ADDRESS).read_text()
        return url if _answers(url) else ""
    return ""


def await_api() -> None:
    """Until the API of this process answers again, but not longer than a server takes to start."""
    deadline = time.monotonic() + START_SECONDS
    while not _answers(os.environ["PREFECT_API_URL"]) and time.monotonic() < deadline:
        time.sleep(PULSE)


def quiet() -> None:
    """Prefect's settings for this process and its children. Call before anything imports prefect."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def _home(data_dir: Path) -> Path:
    """Prefect's home, where the server is our own."""
    home = data_dir.absolute() / "prefect"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError(f"cannot write to {home}: {error.strerror}; set another data_dir") from None
    os.environ.setdefault("PREFECT_HOME", str(home))
    return home


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
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
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
        if _answers(url):
            return
        time.sleep(0.2)
    raise PrerequisiteError(f"the Prefect server did not answer within {START_SECONDS:.0f} s; see {log}")


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _drain() -> None:
    """Send what Prefect's workers still hold; with the server gone they would retry for a minute at exit."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def drain() -> None:
        draining = EventsWorker.drain_all()
        if inspect.isawaitable(draining):
            await draining
        await APILogHandler.aflush()

    run_coro_as_sync(drain())
