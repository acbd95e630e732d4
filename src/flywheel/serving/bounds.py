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
    """`requests`: of one client at once, told apart by API key or else by address."""

    body: int = 8 << 20
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

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        token = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.key and not hmac.compare_digest(token, self.key.encode()):
            await _refuse(send, 401, "the API key is missing or wrong")
            return
        client = token.decode("latin-1") or str((scope.get("client") or ("",))[0])
        if self._under_way[client] >= self.bounds.requests:
            await _refuse(send, 429, f"more than {self.bounds.requests} requests of one client at once; try again")
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
                    too_large = size > self.bounds.body
        except TimeoutError:
            await _refuse(send, 408, f"the body took longer than {self.bounds.body_seconds:g} s")
            return
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
    """HTTP/1.1 that waits for a request's head, but not for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None:
            self._deadline.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
