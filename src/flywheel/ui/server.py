"""`flywheel ui` as a server of this machine's browsers: it listens on loopback alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from flywheel import charts
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import PrerequisiteError
from flywheel.serving.listening import is_loopback, listening
from flywheel.ui.app import make_app

WARM_UP_AFTER = 1.5
"""Seconds until what draws is loaded, if no page has asked for it by then."""


def serve_ui(lake: Lake, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve until interrupted. Raises `PrerequisiteError` for an address that others reach, and for a taken port."""
    if not is_loopback(host):
        raise PrerequisiteError(f"the pages have no password: {host} is open to others; reach this machine by ssh -L")
    with listening(host, port) as bound, suppress(KeyboardInterrupt):
        config = uvicorn.Config(make_app(lake), log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
        threading.Timer(0.1, started, [f"http://{host}:{bound.getsockname()[1]}/"]).start()
        _later(WARM_UP_AFTER, lambda: charts.svg(charts.lines([], "x", "y", "series")))
        uvicorn.Server(config).run(sockets=[bound])


def _later(seconds: float, work: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()
