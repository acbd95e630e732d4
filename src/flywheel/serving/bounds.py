"""Limits on requests: bytes, time, and how many of one client at once."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from flywheel.serving.requests import error_response

DRAIN_SECONDS = 5.0
"""How long the rest of a body that is too large is read and thrown away: a client that is still sending would not read
the refusal."""
HEADER_SECONDS = 10.0
"""How long a connection may take to send its first request's head."""
HEADER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Bounds:
    """`max_buffered_bytes`: of all bodies that have not arrived whole yet. A client is an address."""

    max_body_bytes: int = 8 << 20
    max_buffered_bytes: int = 256 << 20
    body_timeout_seconds: float = 30.0
    max_requests_per_client: int = 256
    only_json: bool = True


@dataclass(slots=True)
class Bounded:
    """An ASGI application behind its bounds. A body reaches it whole or not at all. With a key, every request must
    bring it as a bearer token."""

    app: ASGIApp
    bounds: Bounds
    key: str = ""
    _running: Counter[str] = field(default_factory=Counter)
    """Requests of each client."""
    _buffered_bytes: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        client = str((scope.get("client") or ("",))[0])
        if refusal := self._refusal(scope["method"], headers, client):
            await refusal(scope, receive, send)
            return
        self._running[client] += 1
        try:
            await self._forward(scope, headers, receive, send)
        finally:
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

    def _refusal(self, method: str, headers: dict[bytes, bytes], client: str) -> JSONResponse | None:
        """Why a request is refused by its head alone."""
        token = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.key and not hmac.compare_digest(token, self.key.encode()):
            return _closing(401, "the API key is missing or wrong")
        most = self.bounds.max_requests_per_client
        if self._running[client] >= most:
            return _closing(429, f"more than {most} requests of one client at once; try again")
        kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if self.bounds.only_json and method == "POST" and kind != b"application/json":
            return _closing(415, "the content type must be application/json")
        return None

    async def _forward(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        announced = headers.get(b"content-length", b"0")
        parts, size, more = list[bytes](), 0, True
        too_large = not announced.isdigit() or int(announced[:20]) > self.bounds.max_body_bytes
        try:
            async with asyncio.timeout(self.bounds.body_timeout_seconds):
                while more and not too_large:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    self._buffered_bytes += len(parts[-1])
                    too_large = size > self.bounds.max_body_bytes
                    if self._buffered_bytes > self.bounds.max_buffered_bytes:
                        refusal = _closing(503, "too many large requests at once; try again")
                        await refusal(scope, receive, send)
                        return
        except TimeoutError:
            refusal = _closing(408, f"the body took longer than {self.bounds.body_timeout_seconds:g} s")
            await refusal(scope, receive, send)
            return
        finally:
            self._buffered_bytes -= size
        if too_large:
            parts.clear()
            if b"expect" not in headers:
                await _drain(receive)
            refusal = _closing(413, f"the body is larger than {self.bounds.max_body_bytes >> 20} MiB")
            await refusal(scope, receive, send)
            return
        body = b"".join(parts)
        parts.clear()
        delivered = False

        async def receive_body() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_body, send)


async def _drain(receive: Receive) -> None:
    until = time.monotonic() + DRAIN_SECONDS
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while time.monotonic() < until:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _closing(status: int, message: str) -> JSONResponse:
    """An error after which the connection is closed."""
    response = error_response(status, message)
    response.headers["connection"] = "close"
    return response


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 with a time limit on the head of every request of a connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._is_idle():
            self._wait_for_head()
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if not self._is_idle():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Is no request under way, so that a head is what comes next?"""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()
