"""What a server lets in: so many bytes, in so much time, from so many requests of one client at once."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
DRAIN_SECONDS = 5.0
"""How long the rest of a body that is too large is read and thrown away: who still sends does not hear why."""
HEADER_SECONDS = 10.0
"""How long a connection may take to send its first request's head."""
HEADER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Bounds:
    """`body`: bytes of one; `bodies`: of all that are coming in. `requests`: of one client at once, told apart by
    address."""

    body: int = 8 << 20
    bodies: int = 256 << 20
    body_seconds: float = 30.0
    requests: int = 256


@dataclass(slots=True)
class Bounded:
    """An ASGI application behind its bounds. A body reaches it whole or not at all. With a key, every request must
    bring it as a bearer token."""

    app: App
    bounds: Bounds
    key: str = ""
    _under_way: Counter[str] = field(default_factory=Counter)
    _held: int = 0
    """Bytes of bodies that have not come whole yet."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        token = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.key and not hmac.compare_digest(token, self.key.encode()):
            await _refuse(send, 401, "the API key is missing or wrong")
            return
        client = str((scope.get("client") or ("",))[0])
        if self._under_way[client] >= self.bounds.requests:
            await _refuse(send, 429, f"more than {self.bounds.requests} requests of one client at once; try again")
            return
        kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            await _refuse(send, 415, "the content type must be application/json")
            return
        self._under_way[client] += 1
        try:
            await self._let_in(scope, headers, receive, send)
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]

    async def _let_in(self, scope: Message, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        announced = headers.get(b"content-length", b"0")
        parts, size, more = list[bytes](), 0, True
        too_large = not announced.isdigit() or int(announced[:20]) > self.bounds.body
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                while more and not too_large:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    self._held += len(parts[-1])
                    too_large = size > self.bounds.body
                    if self._held > self.bounds.bodies:
                        await _refuse(send, 503, "too many large requests at once; try again")
                        return
        except TimeoutError:
            await _refuse(send, 408, f"the body took longer than {self.bounds.body_seconds:g} s")
            return
        finally:
            self._held -= size
        if too_large:
            parts.clear()
            if b"expect" not in headers:
                await _drain(receive)
            await _refuse(send, 413, f"the body is larger than {self.bounds.body >> 20} MiB")
            return
        body = b"".join(parts)
        parts.clear()
        told = False

        async def whole() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, whole, send)


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


async def _refuse(send: Send, status: int, message: str) -> None:
    text = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": text})


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits for the head of a connection's first and every later request, but not for ever."""

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
