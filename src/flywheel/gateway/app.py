"""The gateway's application: requests go on to the model's server as they came, answers come back as they are, and what
was said is on the disk before an answer's last byte is sent."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flywheel.config.gateway import GatewayConfig
from flywheel.gateway.dialects import CHAT, PATHS
from flywheel.gateway.forwarding import HOP_BY_HOP, Forwarded
from flywheel.gateway.recording import LARGE_BYTES, Recording, Sent
from flywheel.gateway.routing import RouteInForce
from flywheel.gateway.sessions import OpenSessions, SessionBudget, named_session, token_of
from flywheel.gateway.spool import Outcome, SpoolWriter
from flywheel.gateway.students import Answered, Shadowed, Student
from flywheel.serving.listening import is_loopback
from flywheel.serving.requests import RequestError, error_response, parse_request
from flywheel.trajectory import Split

KEY = "FLYWHEEL_GATEWAY_KEY"
"""The environment variable of the key that clients must bring."""
SWEEP_SECONDS = 1.0
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
    """The task that a session will be of, which attempt at it, and what it may use up (0: as much as it likes)."""

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
    max_tokens: int = Field(default=0, ge=0)
    max_cost: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Gateway:
    """The running gateway: open sessions, the spool, and a connection pool to the model's server."""

    def __init__(
        self,
        config: GatewayConfig,
        spool: SpoolWriter,
        sessions: OpenSessions,
        route: RouteInForce,
        upstream_key: str,
        students_key: str = "",
        key: str = "",
        redact: tuple[str, ...] = (),
    ) -> None:
        self.config, self.spool, self.sessions = config, spool, sessions
        self._route, self._students_key, self._redact = route, students_key, redact
        self._upstream_key, self._key = upstream_key, key
        self._client: aiohttp.ClientSession | None = None
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "flywheel_gateway_calls", "Calls by what became of them", ["result"], registry=self._registry
        )
        self._routed = Counter(
            "flywheel_gateway_routed", "Calls that a student was asked, by why", ["by"], registry=self._registry
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
            self._route.look()
            now = time.time()
            waiting += self.sessions.over(now, self.config.idle)
            if waiting and await self.spool.close_sessions(waiting, now):
                waiting = []

    # -- its own answers -------------------------------------------------------------------------------------------

    async def _health(self, _: Request) -> Response:
        problem = self.spool.problem or self._route.problem
        route = self._route.route.model_dump()
        return JSONResponse({"status": "degraded" if problem else "ok", "problem": problem, "route": route})

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    async def _declare(self, request: Request) -> Response:
        if refusal := self._refusal(request.headers):
            return refusal
        try:
            session = named_session({}, request.path_params["session"])
            declared = parse_request(TaskRequest, await request.body())
        except (ValueError, RequestError) as error:
            return error_response(400, str(error))
        if self.sessions.knows(session) or self.sessions.next_part(session):
            return error_response(409, f"session '{session}' has begun already")
        now = time.time()
        task = declared.model_dump_json(exclude={"max_tokens", "max_cost"})
        if not await self.spool.declare(session, task, now):
            return error_response(503, f"nothing was kept: {self.spool.problem}")
        self.sessions.begin(session, now, SessionBudget(declared.max_tokens, declared.max_cost))
        return JSONResponse({"session": session})

    async def _outcome(self, request: Request) -> Response:
        if refusal := self._refusal(request.headers):
            return refusal
        try:
            session = named_session({}, request.path_params["session"])
            reported = parse_request(OutcomeRequest, await request.body())
        except (ValueError, RequestError) as error:
            return error_response(400, str(error))
        if not self.sessions.knows(session) and not self.sessions.next_part(session):
            return error_response(404, f"no session '{session}' was recorded here")
        values = reported.model_dump(exclude={"final"})
        outcome = Outcome(id=uuid.uuid4().hex, session=session, created_at=time.time(), **values)
        if not await self.spool.outcome(outcome):
            return error_response(503, f"nothing was kept: {self.spool.problem}")
        if reported.final:
            self.sessions.end(session)
        return JSONResponse({"id": outcome.id, "session": session})

    def _refusal(self, headers: Mapping[str, str]) -> Response | None:
        """Why a client is not served: it lacks the key or, where none is asked for, it came by a foreign name, as a web
        page does whose name was made to point here (DNS rebinding)."""
        if not self._key:
            here = _is_local(headers.get("host", ""))
            return None if here else error_response(403, f"ask for localhost, or set {KEY} and bring that key")
        token, length = token_of(headers), len(self._key)
        is_key = hmac.compare_digest(token[:length].encode(), self._key.encode())
        may_pass = is_key and token[length : length + 1] in ("", ":")
        return None if may_pass else error_response(401, "the API key is missing or wrong")

    # -- what goes on to the model's server ------------------------------------------------------------------------

    async def _forward(self, request: Request) -> Response:
        if refusal := self._refusal(request.headers):
            return refusal
        try:
            named = named_session(request.headers, request.path_params.get("session", ""), self._key)
        except ValueError as error:
            return error_response(400, str(error))
        if spent := self.sessions.overspent(named):
            return error_response(403, spent)
        if _is_a_pages_form(request.headers):
            return error_response(403, "a web page of another origin may not use the gateway")
        body, path = await request.body(), request.path_params["path"]
        dialect = PATHS.get(path) if request.method == "POST" else None
        recording = None
        if dialect:
            read = Sent.read
            sent = await asyncio.to_thread(read, dialect, body) if len(body) > LARGE_BYTES else read(dialect, body)
            if sent:
                place = self.sessions.place(
                    named, sent.prefixes, sent.ids, request.headers.get("traceparent", ""), time.time(), sent.continues
                )
                recording = Recording(self.spool, self.sessions, self.count, dialect, sent, place, self.config.cost_of)
        assert self._client is not None
        upstream = self._upstream(request, body, path, recording)
        route = self._route.route
        if recording is None or dialect is not CHAT or not route.takes(recording.place.session):
            return upstream
        self._routed.labels("shadow" if route.shadow else "student").inc()
        server = (self._client, self.config.students, self._students_key)
        student = Student(*server, route, self.config.private, self._redact)
        return (Shadowed if route.shadow else Answered)(student, recording, upstream)

    def _upstream(self, request: Request, body: bytes, path: str, recording: Recording | None) -> Forwarded:
        assert self._client is not None
        url = f"{self.config.upstream}/{path}" + (f"?{request.url.query}" if request.url.query else "")
        return Forwarded(self._client, request.method, url, self._headers(request), body, recording)

    def _headers(self, request: Request) -> list[tuple[str, str]]:
        """The client's headers with the gateway's key in place of the client's."""
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        headers.append(("accept-encoding", "identity"))
        if not self._upstream_key:
            return [header for header in headers if header[0] not in _KEYS]
        keyed = [name for name, _ in headers if name in _KEYS] or ["authorization"]
        headers = [header for header in headers if header[0] not in _KEYS]
        return headers + [
            (name, f"Bearer {self._upstream_key}" if name == "authorization" else self._upstream_key) for name in keyed
        ]

    def count(self, result: str) -> None:
        self._calls.labels(result).inc()


def _is_local(host: str) -> bool:
    """Does a Host header name this machine? Without one, no browser asks."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return not host or (name is not None and is_loopback(name))


def _is_a_pages_form(headers: Mapping[str, str]) -> bool:
    """Did a browser send what it sends anywhere without asking? JSON it would ask for, and is refused then."""
    return "origin" in headers and not headers.get("content-type", "").startswith("application/json")
