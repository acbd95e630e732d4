"""Running the server: on loopback by default, elsewhere only with a key."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import suppress

import uvicorn
import uvloop

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import PrerequisiteError
from flywheel.policies.registry import registered
from flywheel.serving.app import make_app
from flywheel.serving.bounds import HEADER_BYTES, Bounded, Bounds, HeaderTimeoutProtocol
from flywheel.serving.listening import GRACE_SECONDS, KEEP_ALIVE_SECONDS, SERVE_KEY, is_loopback, listening
from flywheel.serving.roster import CHAMPION, Canary, Roster


def serve(
    lake: Lake,
    policy: str = CHAMPION,
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    device: str = "cpu",
    canary: Canary | None = None,
    bounds: Bounds | None = None,
    started: Callable[[str, str], None] = lambda url, student: None,
) -> None:
    """Serve until interrupted. Raises `PrerequisiteError` for an open address without a key, or a taken port."""
    key = os.environ.get(SERVE_KEY, "")
    if not key and not is_loopback(host):
        raise PrerequisiteError(f"{host} is open to others: set {SERVE_KEY} to the API key that they must bring")
    pinned = "" if policy == CHAMPION else str(registered(lake, policy).policy_id)
    if canary:
        canary = Canary(str(registered(lake, canary.policy_id).policy_id), canary.share)
    with suppress(KeyboardInterrupt):
        uvloop.run(
            _serve(Roster(lake, device, pinned=pinned, canary=canary), key, host, port, bounds or Bounds(), started)
        )


async def _serve(
    roster: Roster, key: str, host: str, port: int, bounds: Bounds, started: Callable[[str, str], None]
) -> None:
    with listening(host, port) as bound:
        await roster.start()
        gc.collect()
        gc.freeze()  # what is there by now stays; a full collection of it would hold up everybody's answers
        started(f"http://{host}:{bound.getsockname()[1]}/v1", roster.current)
        config = uvicorn.Config(
            Bounded(make_app(roster), bounds, key),
            http=HeaderTimeoutProtocol,
            h11_max_incomplete_event_size=HEADER_BYTES,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            lifespan="on",
        )
        try:
            await uvicorn.Server(config).serve(sockets=[bound])
        finally:
            gc.unfreeze()  # libraries look at their leaks when the interpreter ends
