"""Connection to a Prefect API: which one is used, its settings in this process, and who receives events."""

from __future__ import annotations

import http.client
import inspect
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from flywheel.errors import PrerequisiteError, reason_of
from flywheel.flows.logs import LOGGER

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""How long a server may take to answer for the first time."""
PULSE = 0.5
"""Seconds between two looks at a server."""
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
def reached_api(data_dir: Path, port: int) -> Iterator[str]:
    """The address of the Prefect API that a running `flywheel serve`, or PREFECT_API_URL, offers.

    Raises `PrerequisiteError` where none answers, or where it refuses what is asked of it.
    """
    given = os.environ.get("PREFECT_API_URL", "")
    url = given or running_api(data_dir) or f"http://{HOST}:{port}/api"
    if not answers(url):
        raise PrerequisiteError(
            f"no Prefect server answers at {url}; start one with: flywheel serve CONFIG, or set PREFECT_API_URL"
        )
    quiet()
    if not given:
        home_in(data_dir)
    with nullcontext() if given else addressed(url):
        try:
            yield url
        except Exception as error:
            from prefect.exceptions import PrefectHTTPStatusError

            if not isinstance(error, PrefectHTTPStatusError):
                raise
            raise PrerequisiteError(f"the Prefect server at {url} refused: {reason_of(error)[:300]}") from error
        finally:
            drain()


def running_api(data_dir: Path) -> str:
    """The address of the server that serves this data directory now, or an empty string."""
    with suppress(OSError):
        url = (data_dir / "prefect" / ADDRESS).read_text()
        return url if answers(url) else ""
    return ""


@contextmanager
def heard(data_dir: Path) -> Iterator[bool]:
    """Whether a Prefect server receives events. Within the context, they reach it.

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


def await_api() -> None:
    """Until the API of this process answers again, but not longer than a server takes to start."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(os.environ["PREFECT_API_URL"]) and time.monotonic() < deadline:
        time.sleep(PULSE)


def quiet() -> None:
    """Prefect's settings for this process and its children. Call before anything imports prefect."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def home_in(data_dir: Path) -> Path:
    """Prefect's home, where the server is our own."""
    home = data_dir.absolute() / "prefect"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError(f"cannot write to {home}: {error.strerror}; set another data_dir") from None
    os.environ.setdefault("PREFECT_HOME", str(home))
    return home


@contextmanager
def addressed(url: str) -> Iterator[None]:
    """Within the context, this process and its children use the API at a URL."""
    os.environ["PREFECT_API_URL"] = url
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]


def answers(url: str) -> bool:
    """Is there an API at a URL?"""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def drain() -> None:
    """Send what Prefect's workers still hold; with the server gone they would retry for a minute at exit."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def sent() -> None:
        draining = EventsWorker.drain_all()
        if inspect.isawaitable(draining):
            await draining
        await APILogHandler.aflush()

    run_coro_as_sync(sent())
