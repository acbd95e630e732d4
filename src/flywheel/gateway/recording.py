"""A call that is being answered: what was sent, where it belongs, and the answer, on the disk before it is whole."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from flywheel.gateway.dialects import Dialect, Json, events
from flywheel.gateway.fingerprints import call_ids, chain
from flywheel.gateway.sessions import OpenSessions, Place
from flywheel.gateway.spool import Call, SpoolWriter

LARGE_BYTES = 1 << 20
"""What is longer is read in a thread."""


class Sent:
    """What a request says, read once."""

    def __init__(self, dialect: Dialect, request: Json) -> None:
        self.request, self.items = request, dialect.items_of(request)
        self.prefixes, self.ids = chain(self.items), call_ids(self.items)
        self.continues = str(request.get("previous_response_id") or "")

    @classmethod
    def read(cls, dialect: Dialect, body: bytes) -> Sent | None:
        """None for what the server is left to refuse."""
        try:
            request = json.loads(body)
            return cls(dialect, request) if isinstance(request, dict) else None
        except (ValueError, RecursionError):
            return None


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
    ) -> None:
        self._spool, self._sessions, self._count = spool, sessions, count
        self.dialect, self._sent, self.place = dialect, sent, place
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
        recorded = await self._spool.call(call)
        if recorded and not problem:
            self._sessions.answered(self.place.session, call.id, tails, ids, call.response_id)
        self._count("unrecorded" if not recorded else "failed" if problem else "recorded")

    def done(self) -> None:
        self._sessions.done(self.place.session, time.time())

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
