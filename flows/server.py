"""The Prefect server behind a run: an existing one by PREFECT_API_URL, else one of our own for as long as it is needed.

Our own server is a child process on the loopback interface that dies with its parent, even by kill -9. Its home
lies in the data directory; it sends no telemetry. Prefect's built-in ephemeral server is not used: Ctrl-C takes it
down before the run that it serves, and kill -9 leaves it behind.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flywheel.errors import PrerequisiteError

HOST = "127.0.0.1"
START_SECONDS = 120.0
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(int(START_SECONDS)),
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
"""No telemetry, no pickle, and no second copy of every log line on the console; the logs go to the server."""


@contextmanager
def prefect_api(data_dir: Path, port: int = 0) -> Iterator[str]:
    """The address of a Prefect API that lives at least as long as the context. Port 0 takes a free one.

    Call before anything imports prefect: it reads its settings then.
    """
    home = data_dir.absolute() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(home))
    if existing := os.environ.get("PREFECT_API_URL"):
        yield existing
        return
    port = free_port(port)
    url = f"http://{HOST}:{port}/api"
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    os.environ["PREFECT_API_URL"] = url
    try:
        _wait(process, url, home / "server.log")
        yield url
    finally:
        _drain()
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PrerequisiteError(f"the Prefect server ended at once; the reason is in {log}")
        try:
            with opener.open(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise PrerequisiteError(f"the Prefect server did not answer within {START_SECONDS:.0f} s; see {log}")


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


def _die_with_parent() -> None:
    """Linux: have the kernel end this child when its parent is gone, however it went."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)
