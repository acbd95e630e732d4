"""Answers of the model's server, handed on byte by byte as they come."""

from __future__ import annotations

import asyncio
import io
from contextlib import suppress

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flywheel.errors import named_reason
from flywheel.gateway.recording import Recording
from flywheel.serving.requests import error_response

SESSION_HEADER = b"x-flywheel-session"
HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "accept-encoding",
        "content-encoding",
        "date",
        "server",
        "x-flywheel-session",
        "expect",
    ]
)
"""Headers of one connection, and what the two servers set themselves."""


class Forwarded(Response):
    """The model's server's answer, byte by byte as it comes. The last event of a recorded stream, or the whole of a
    plain answer, waits for the spool."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        recording: Recording | None,
    ) -> None:
        self._client, self._recording = client, recording
        self._request = (method, url, headers, body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(_left(receive))
        answering = asyncio.create_task(self._answer(scope, receive, send))
        try:
            await asyncio.wait([leaving, answering], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
        finally:
            leaving.cancel()
            if self._recording:
                self._recording.done()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, status, streamed, begun = bytearray(), 0, False, False
        try:
            method, url, sent_headers, sent = self._request
            async with self._client.request(
                method, url, headers=sent_headers, data=io.BytesIO(sent), allow_redirects=False
            ) as upstream:
                status = upstream.status
                streamed, headers = upstream.content_type == "text/event-stream", self._head(upstream)
                if self._recording and not streamed:
                    body += await upstream.read()
                    await self._recording.keep(status, bytes(body), streamed=False)
                    headers.append((b"content-length", str(len(body)).encode()))
                await send({"type": "http.response.start", "status": status, "headers": headers})
                begun, held = True, b""
                async for chunk in upstream.content.iter_any():
                    if self._recording:
                        body += chunk
                        held, chunk = self._hold(held, chunk)
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if self._recording and streamed:
                    await self._recording.keep(status, bytes(body), streamed=True)
                await send({"type": "http.response.body", "body": held if streamed else bytes(body)})
        except asyncio.CancelledError:
            if self._recording:
                problem = "the client left before the answer was whole"
                await asyncio.shield(self._recording.keep(status, bytes(body), streamed=streamed, problem=problem))
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            problem = f"the model's server: {named_reason(error) or 'no byte in time'}"
            if self._recording:
                await self._recording.keep(status, bytes(body), streamed=streamed, problem=problem)
            if begun:
                raise  # the connection breaks, as the server's did
            code = 504 if isinstance(error, TimeoutError) else 502
            await error_response(code, problem)(scope, receive, send)

    def _hold(self, held: bytes, chunk: bytes) -> tuple[bytes, bytes]:
        """(what waits for the spool, what may go)."""
        assert self._recording is not None
        if held:
            return held + chunk, b""
        last = self._recording.dialect.last.search(chunk)
        return (chunk[last.start() :], chunk[: last.start()]) if last else (b"", chunk)

    def _head(self, upstream: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
        headers = [(name, value) for name, value in upstream.raw_headers if name.lower().decode() not in HOP_BY_HOP]
        if self._recording:
            headers.append((SESSION_HEADER, self._recording.place.session.encode()))
        return headers


async def _left(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
