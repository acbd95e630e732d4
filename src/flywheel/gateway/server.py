"""Running the gateway: on loopback by default, elsewhere only with a key, and a mover beside it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
import uvloop
from filelock import FileLock, Timeout

from flywheel.config.root import Config
from flywheel.errors import PrerequisiteError
from flywheel.gateway.app import KEY, Gateway
from flywheel.gateway.routing import Route, RouteInForce
from flywheel.gateway.sessions import OpenSessions
from flywheel.gateway.spool import SpoolWriter, connected, sessions
from flywheel.runtime.subprocesses import child_environment, python_command
from flywheel.serving.bounds import HEADER_BYTES, Bounded, Bounds, HeaderTimeoutProtocol
from flywheel.serving.listening import GRACE_SECONDS, KEEP_ALIVE_SECONDS, SERVE_KEY, is_loopback, listening

log = logging.getLogger(__name__)

MOVER_LOOK_SECONDS = 5.0
CLIENTS = 10_000
"""Requests of one address at once: an agent's whole fleet may come from one."""


def serve(
    config: Config,
    *,
    host: str = "127.0.0.1",
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until interrupted. Raises `PrerequisiteError` for an open address without a key, or a taken port."""
    key = os.environ.get(KEY, "")
    if not key and not is_loopback(host):
        raise PrerequisiteError(f"{host} is open to others: set {KEY} to the API key that they must bring")
    with suppress(KeyboardInterrupt):
        uvloop.run(_serve(config, key, host, started))


async def _serve(config: Config, key: str, host: str, started: Callable[[str], None]) -> None:
    with listening(host, config.gateway.port) as bound, open_gateway(config, key) as gateway:
        moving = asyncio.create_task(_keep_moving(config))
        gc.freeze()  # what is there by now stays; a full collection of it would hold up every stream
        try:
            started(f"http://{host}:{bound.getsockname()[1]}/v1")
            await server_of(gateway).serve(sockets=[bound])
        finally:
            moving.cancel()
            with suppress(asyncio.CancelledError):
                await moving


async def _keep_moving(config: Config) -> None:
    """A mover, and another one where it dies."""
    mover = _start_mover(config)
    try:
        while True:
            await asyncio.sleep(MOVER_LOOK_SECONDS)
            if mover.poll() is not None:
                log.warning("the mover ended with %d, and is started again", mover.returncode)
                mover = _start_mover(config)
    finally:
        mover.terminate()
        await asyncio.to_thread(mover.wait)


@contextmanager
def open_gateway(config: Config, key: str = "") -> Iterator[Gateway]:
    """A gateway that goes on where the last one on this folder stopped. `key`: what clients must bring, or empty."""
    settings, folder = config.gateway, config.data_dir
    with _alone(folder), connected(folder) as reading:

        def next_part(session: str) -> int:
            (part,) = reading.execute("select coalesce(max(part) + 1, 0) from session where name = ?", (session,))
            return int(part[0])

        opened = OpenSessions(next_part)
        restore(folder, opened)
        spool = SpoolWriter(folder, settings.spool_mib << 20)
        try:
            route = RouteInForce(folder, Route())
            route.look()
            upstream_key = os.environ.get(settings.key, "")
            students_key, redact = os.environ.get(SERVE_KEY, ""), tuple(config.lake.redact)
            yield Gateway(settings, spool, opened, route, upstream_key, students_key, key, redact)
        finally:
            spool.stop()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two gateways would close each other's sessions."""
    path = folder / "gateway" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise PrerequisiteError(f"a gateway records into {folder} already; stop it, or name another data_dir") from None


@contextmanager
def in_background(config: Config, key: str = "") -> Iterator[tuple[str, Gateway]]:
    """A gateway in a thread, on a free port of loopback, and its URL."""
    with listening("127.0.0.1", 0) as bound, open_gateway(config, key) as gateway:
        server = server_of(gateway)
        thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[bound])), name="gateway")
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1", gateway
        finally:
            server.should_exit = True
            thread.join()


def server_of(gateway: Gateway) -> uvicorn.Server:
    """The web server in front of it, with its bounds."""
    mib = gateway.config.body_mib << 20
    bounds = Bounds(max_body_bytes=mib, max_buffered_bytes=16 * mib, max_requests_per_client=CLIENTS, only_json=False)
    return uvicorn.Server(
        uvicorn.Config(
            Bounded(gateway.app(), bounds),
            http=HeaderTimeoutProtocol,
            h11_max_incomplete_event_size=HEADER_BYTES,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            lifespan="on",
        )
    )


def restore(folder: Path, opened: OpenSessions) -> None:
    """Go on with the sessions that were open when the gateway last stopped, however it did."""
    with connected(folder) as connection:
        for session in sessions(connection, "closed_at is null"):
            opened.restore(session.name, session.part, session.last)
        rows = connection.execute(
            """select c.session, c.id, c.parent, c.tails, c.ids, c.response_id
               from call c join session s on s.name = c.session and s.part = c.part
               where s.closed_at is null and c.problem = '' order by c.began"""
        )
        for row in rows:
            opened.restore_call(*row)


def _start_mover(config: Config) -> subprocess.Popen[bytes]:
    """The process that brings what is over into the lake; it ends with this one."""
    return subprocess.Popen(
        python_command("-m", "flywheel.gateway.mover", str(os.getpid()), config.model_dump_json()),
        env=child_environment(),
    )
