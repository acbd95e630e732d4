"""A call that is being answered: what was sent, where it belongs, and the answer, on the disk before it is whole."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flywheel.gateway.agreement import compared
from flywheel.gateway.dialects import Dialect, Json, events
from flywheel.gateway.fingerprints import call_ids, chain
from flywheel.gateway.sessions import OpenSessions, Place
from flywheel.gateway.spool import Call, SpoolWriter
from flywheel.unknowns import known_sum

LARGE_BYTES = 1 << 20
"""What is longer is read in a thread."""
BEGIN_BYTES = 1 << 16
"""So much is kept of what could not be read."""


class Sent:
    """What a request says, read once."""

    def __init__(self, dialect: Dialect, request: Json) -> None:
        self.request, self.items = request, dialect.items_of(request)
        self.prefixes, self.ids = chain(self.items), call_ids(self.items)
        self.continues = str(request.get("previous_response_id") or "")

    @classmethod
    def read(cls, dialect: Dialect, body: bytes) -> Sent | None:
        """None for what cannot be read: the server is left to refuse it."""
        try:
            request = json.loads(body)
            return cls(dialect, request) if isinstance(request, dict) else None
        except Exception:
            return None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back, read once. `problem`: why it is no answer, or empty."""

    response: Json
    problem: str
    tails: list[bytes] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    response_id: str = ""


class Recording:
    """A call that is being answered."""

    def __init__(
        self,
        spool: SpoolWriter,
        sessions: OpenSessions,
        count: Callable[[str], None],
        dialect: Dialect,
        sent: Sent,
        place: Place,
        cost_of: Callable[[int | None, int | None], float | None],
    ) -> None:
        self._spool, self._sessions, self._count, self._cost_of = spool, sessions, count, cost_of
        self.dialect, self._sent, self.place = dialect, sent, place
        self._began = time.time()
        self.notes: Json = {}
        """What else the record says of the answer, under `flywheel`."""
        self.shadow: asyncio.Task[Json] | None = None
        """A student that is asked the same."""

    @property
    def request(self) -> Json:
        """What the client asks."""
        return self._sent.request

    async def keep(self, status: int, body: bytes, *, streamed: bool, problem: str = "") -> None:
        """Put the call on the disk, and let the next one find it."""
        is_large = len(body) > LARGE_BYTES
        read = await asyncio.to_thread(self._read, body, streamed) if is_large else self._read(body, streamed)
        problem = problem or (f"HTTP status {status}" if status >= 400 else read.problem)
        tails = [] if problem else read.tails
        if self.shadow is not None and not problem:
            self.notes |= compared(self.shadow, read.response)
        noted = {"flywheel": {**(read.response.get("flywheel") or {}), **self.notes}} if self.notes else {}
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
            ids=sorted(self._sent.ids | read.ids),
            response_id="" if problem else read.response_id,
            request={**self._sent.request, self.dialect.items: items},
            response={**read.response, **noted},
        )
        self._spend(read.response)
        recorded = await self._spool.call(call)
        if recorded and not problem:
            self._sessions.answered(self.place.session, call.id, tails, call.ids, call.response_id)
        self._count("unrecorded" if not recorded else "failed" if problem else "recorded")

    def _spend(self, response: Json) -> None:
        usage = response.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else None for name in self.dialect.usage]
        prompt, completion = (count if isinstance(count, int) else None for count in counts)
        by_student = "student" in (response.get("flywheel") or {})
        cost = 0.0 if by_student else self._cost_of(prompt, completion)
        self._sessions.spend(self.place.session, known_sum((prompt, completion)), cost)

    def done(self) -> None:
        self._sessions.done(self.place.session, time.time())

    def _read(self, body: bytes, streamed: bool) -> _Answer:
        """The answer put together; of what cannot be read, how it begins. The client has it, whatever it is."""
        whole: Any = None
        try:
            whole = self.dialect.fold(events(body)) if streamed else json.loads(body)
            answers = self.dialect.answers(whole)
            before = self._sent.prefixes[-1] if self._sent.prefixes else b""
            tails = [chain(answer, before)[-1] for answer in answers]
            ids = set[str]().union(*map(call_ids, answers))
            response_id = str(whole.get("id") or "") if self.dialect.is_continued_by_id else ""
        except Exception:
            tails = []
        if not tails:
            begin = body[:BEGIN_BYTES].decode(errors="replace")
            return _Answer(whole if isinstance(whole, dict) else {"unread": begin}, "no answer could be read")
        return _Answer(whole, "", tails, ids, response_id)
