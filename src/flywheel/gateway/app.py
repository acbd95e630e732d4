"""The gateway's application: requests go on to the model's server as they came, answers come back as they are, and what
was said is on the disk before an answer's last byte is sent."""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from flywheel.config.gateway import GatewayConfig
from flywheel.errors import named_reason
from flywheel.gateway.dialects import PATHS, Dialect, Json, events
from flywheel.gateway.fingerprints import call_ids, chain
from flywheel.gateway.sessions import OpenSessions, Place, named_session
from flywheel.gateway.spool import Call, Outcome, SpoolWriter
from flywheel.serving.requests import RequestError, error_response, parse_request
from flywheel.trajectory import Split

SESSION_HEADER = b"x-flywheel-session"
SWEEP_SECONDS = 1.0
LARGE_BYTES = 1 << 20
"""Requests from here on are read in a thread."""
_HOP_BY_HOP = frozenset(
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
_KEYS = ("authorization", "x-api-key")
METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH"]


class OutcomeRequest(BaseModel):
    """What is reported of a session. `final`: it is over, and no further call is waited for."""

    model_config = ConfigDict(extra="forbid")
    success: bool | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    comment: str = Field(default="", max_length=10_000)
    who: str = Field(default="", max_length=200)
    final: bool = True

    @model_validator(mode="after")
    def _says_something(self) -> OutcomeRequest:
        if self.success is None and self.score is None and not self.comment:
            raise ValueError("give success, score or comment")
        return self


class TaskRequest(BaseModel):
    """The task that a session will be of, and which attempt at it."""

    model_config = ConfigDict(extra="forbid")
    split: Split
    seed: int
    instruction: str
    name: str = Field(min_length=1)
    asked: str = ""
    unit: str = ""
    family: str = ""
    data: str = ""
    attempt: int = Field(default=0, ge=0, lt=1000)


class Gateway:
    """The running gateway: open sessions, the spool, and a connection pool to the model's server."""

    def __init__(
        self, config: GatewayConfig, spool: SpoolWriter, sessions: OpenSessions, upstream_key: str, key: str = ""
    ) -> None:
        self.config, self.spool, self.sessions = config, spool, sessions
        self._upstream_key, self._key = upstream_key, key
        self._client: aiohttp.ClientSession | None = None
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "flywheel_gateway_calls", "Calls by what became of them", ["result"], registry=self._registry
        )
        for name, about, read in (
            ("spool_bytes", "Bytes that wait for the lake", lambda: self.spool.used),
            ("sessions_open", "Sessions that may go on", lambda: len(self.sessions)),
        ):
            Gauge(f"flywheel_gateway_{name}", about, registry=self._registry).set_function(read)

    def app(self) -> Starlette:
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/sessions/{session}", self._declare, methods=["PUT"]),
            Route("/v1/sessions/{session}/outcome", self._outcome, methods=["POST"]),
            Route("/s/{session}/v1/{path:path}", self._forward, methods=METHODS),
            Route("/v1/{path:path}", self._forward, methods=METHODS),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=self.config.timeout)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30), timeout=timeout, auto_decompress=True
        )
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await self._client.close()

    async def _sweep(self) -> None:
        """Close what is over, again and again."""
        waiting: list[tuple[str, int]] = []
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.time()
            waiting += self.sessions.over(now, self.config.idle)
            if waiting and await self.spool.close_sessions(waiting, now):
                waiting = []

    # -- its own answers -------------------------------------------------------------------------------------------

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "degraded" if self.spool.problem else "ok", "problem": self.spool.problem})

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    async def _declare(self, request: Request) -> Response:
        if not self._may_pass(request.headers):
            return error_response(401, "the API key is missing or wrong")
        try:
            session = named_session({}, request.path_params["session"])
            declared = parse_request(TaskRequest, await request.body())
        except (ValueError, RequestError) as error:
            return error_response(400, str(error))
        if self.sessions.knows(session) or self.sessions.next_part(session):
            return error_response(409, f"session '{session}' has begun already")
        now = time.time()
        if not await self.spool.declare(session, declared.model_dump_json(), now):
            return error_response(503, f"nothing was kept: {self.spool.problem}")
        self.sessions.begin(session, now)
        return JSONResponse({"session": session})

    async def _outcome(self, request: Request) -> Response:
        if not self._may_pass(request.headers):
            return error_response(401, "the API key is missing or wrong")
        try:
            session = named_session({}, request.path_params["session"])
            told = parse_request(OutcomeRequest, await request.body())
        except (ValueError, RequestError) as error:
            return error_response(400, str(error))
        if not self.sessions.knows(session) and not self.sessions.next_part(session):
            return error_response(404, f"no session '{session}' was recorded here")
        values = told.model_dump(exclude={"final"})
        outcome = Outcome(id=uuid.uuid4().hex, session=session, created_at=time.time(), **values)
        if not await self.spool.outcome(outcome):
            return error_response(503, f"nothing was kept: {self.spool.problem}")
        if told.final:
            self.sessions.end(session)
        return JSONResponse({"id": outcome.id, "session": session})

    def _may_pass(self, headers: Mapping[str, str]) -> bool:
        if not self._key:
            return True
        token = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        return hmac.compare_digest(token.partition(":")[0].encode(), self._key.encode())

    # -- what goes on to the model's server ------------------------------------------------------------------------

    async def _forward(self, request: Request) -> Response:
        if not self._may_pass(request.headers):
            return error_response(401, "the API key is missing or wrong")
        try:
            named = named_session(request.headers, request.path_params.get("session", ""), self._key)
        except ValueError as error:
            return error_response(400, str(error))
        body, path = await request.body(), request.path_params["path"]
        dialect = PATHS.get(path) if request.method == "POST" else None
        recording = None
        if dialect:
            read = _Sent.read
            sent = await asyncio.to_thread(read, dialect, body) if len(body) > LARGE_BYTES else read(dialect, body)
            if sent:
                place = self.sessions.place(
                    named, sent.prefixes, sent.ids, request.headers.get("traceparent", ""), time.time(), sent.continues
                )
                recording = _Recording(self, dialect, sent, place)
        url = f"{self.config.upstream}/{path}" + (f"?{request.url.query}" if request.url.query else "")
        return _Forwarded(self, request.method, url, self._headers(request), body, recording)

    def _headers(self, request: Request) -> list[tuple[str, str]]:
        """The client's headers with the gateway's key in place of the client's."""
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        headers.append(("accept-encoding", "identity"))
        if not self._upstream_key:
            return [header for header in headers if header[0] not in _KEYS]
        keyed = [name for name, _ in headers if name in _KEYS] or ["authorization"]
        headers = [header for header in headers if header[0] not in _KEYS]
        return headers + [
            (name, f"Bearer {self._upstream_key}" if name == "authorization" else self._upstream_key) for name in keyed
        ]

    @asynccontextmanager
    async def open(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._client is not None
        async with self._client.request(
            method, url, headers=headers, data=io.BytesIO(body), allow_redirects=False
        ) as response:
            yield response

    def count(self, result: str) -> None:
        self._calls.labels(result).inc()


class _Sent:
    """What a request says, read once."""

    def __init__(self, dialect: Dialect, request: Json) -> None:
        self.request, self.items = request, dialect.items_of(request)
        self.prefixes, self.ids = chain(self.items), call_ids(self.items)
        self.continues = str(request.get("previous_response_id") or "")

    @classmethod
    def read(cls, dialect: Dialect, body: bytes) -> _Sent | None:
        """None for what the server is left to refuse."""
        try:
            request = json.loads(body)
            return cls(dialect, request) if isinstance(request, dict) else None
        except (ValueError, RecursionError):
            return None


class _Recording:
    """A call that is being answered."""

    def __init__(self, gateway: Gateway, dialect: Dialect, sent: _Sent, place: Place) -> None:
        self._gateway, self.dialect, self._sent, self.place = gateway, dialect, sent, place
        self._began = time.time()

    async def keep(self, status: int, body: bytes, *, streamed: bool, problem: str = "") -> None:
        """Put the call on the disk, and let the next one find it."""
        response = (
            await asyncio.to_thread(self._response, body, streamed)
            if len(body) > LARGE_BYTES
            else self._response(body, streamed)
        )
        if status >= 400:
            problem = problem or f"HTTP status {status}"
        answers = [] if problem else self.dialect.answers(response)
        if not problem and not answers:
            problem = "no answer could be read"
        before = self._sent.prefixes[-1] if self._sent.prefixes else b""
        tails = [chain(answer, before)[-1] for answer in answers]
        response_id = response.get("id") if answers and self.dialect.is_continued_by_id else ""
        ids = sorted(set().union(self._sent.ids, *map(call_ids, answers)))
        items = self._sent.items[self.place.kept :]
        call = Call(
            id=uuid.uuid4().hex,
            session=self.place.session,
            part=self.place.part,
            parent=self.place.parent,
            kept=self.place.kept,
            answer=self.place.answer,
            began=self._began,
            seconds=time.time() - self._began,
            dialect=self.dialect.name,
            status=status,
            problem=problem,
            tails=[tail.hex() for tail in tails],
            ids=ids,
            response_id=str(response_id or ""),
            request={**self._sent.request, self.dialect.items: items},
            response=response,
        )
        recorded = await self._gateway.spool.call(call)
        if recorded and not problem:
            self._gateway.sessions.answered(self.place.session, call.id, tails, ids, call.response_id)
        self._gateway.count("unrecorded" if not recorded else "failed" if problem else "recorded")

    def done(self) -> None:
        self._gateway.sessions.done(self.place.session, time.time())

    def _response(self, body: bytes, streamed: bool) -> Json:
        """The answer put together; of what cannot be read, how it begins."""
        if streamed:
            whole: Any = self.dialect.fold(events(body))
        else:
            try:
                whole = json.loads(body)
            except (ValueError, RecursionError):
                whole = None
        return whole if isinstance(whole, dict) else {"unread": body[: 1 << 16].decode(errors="replace")}


class _Forwarded(Response):
    """The model's server's answer, byte by byte as it comes. The last event of a recorded stream, or the whole of a
    plain answer, waits for the spool."""

    def __init__(
        self,
        gateway: Gateway,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        recording: _Recording | None,
    ) -> None:
        self._gateway, self._recording = gateway, recording
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
            async with self._gateway.open(*self._request) as upstream:
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
        headers = [(name, value) for name, value in upstream.raw_headers if name.lower().decode() not in _HOP_BY_HOP]
        if self._recording:
            headers.append((SESSION_HEADER, self._recording.place.session.encode()))
        return headers


async def _left(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
