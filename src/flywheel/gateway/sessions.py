"""Which session a call belongs to, and which earlier call it continues.

A session is named by the client, in its key, a header or the path; else it is that of the call whose conversation the
request continues; else that which gave the ids of its tool calls; else a new one. To join what does not belong together
is worse than to split what does, so nothing weaker than these counts.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flywheel.unknowns import known_sum, spent

NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,63}")
KEY, HEADER = "sk-fw-", "x-flywheel-session"
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call stands. `parent`: the call that it continues, or empty; `kept`: how many of its items that call
    holds already; `answer`: which of its answers it goes on from. `part`: sessions that were over and went on have
    several."""

    session: str
    part: int
    parent: str = ""
    kept: int = 0
    answer: int = 0


@dataclass(frozen=True, slots=True)
class _Tail:
    """How a call's conversation may go on: from which of its answers."""

    session: str
    call: str
    answer: int


@dataclass(frozen=True, slots=True)
class SessionBudget:
    """What a session may use up; 0: as much as it likes."""

    tokens: int = 0
    cost: float = 0.0


@dataclass(slots=True)
class _Open:
    part: int
    last: float
    budget: SessionBudget = SessionBudget()
    tokens: int | None = 0
    cost: float | None = 0.0
    running: int = 0
    is_over: bool = False
    tails: set[bytes] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)


@dataclass(slots=True)
class OpenSessions:
    """The sessions that calls may still join. `next_part`: the number of a session's next part, 0 for a new one."""

    next_part: Callable[[str], int]
    _open: dict[str, _Open] = field(default_factory=dict)
    _tails: dict[bytes, list[_Tail]] = field(default_factory=dict)
    """Digest of a conversation, or id of a response → those that ended so."""
    _continued: set[str] = field(default_factory=set)
    """Calls that another one continues."""
    _sessions_of_id: dict[str, set[str]] = field(default_factory=dict)
    """Id of a tool call → sessions that it was seen in."""

    def __len__(self) -> int:
        return len(self._open)

    def place(
        self, named: str, prefixes: Sequence[bytes], ids: Iterable[str], trace: str, now: float, response_id: str = ""
    ) -> Place:
        """Where a request belongs, and note that it runs. `prefixes`: its chain of digests; `ids`: of its tool calls;
        `response_id`: the response that it says it continues."""
        before, kept = self._continuing(response_id.encode(), named) if response_id else None, 0
        for place in range(len(prefixes) - 1, -1, -1) if not before else ():
            before = self._continuing(prefixes[place], named)
            if before:
                kept = place + 1
                break
        session = (
            named or (before.session if before else "") or self._by_id(ids) or self._by_trace(trace) or uuid.uuid4().hex
        )
        if session not in self._open:
            self._open[session] = _Open(self.next_part(session), now)
        opened = self._open[session]
        opened.last, opened.is_over = now, False
        opened.running += 1
        if not before:
            return Place(session, opened.part)
        self._continued.add(before.call)
        return Place(session, opened.part, before.call, kept, before.answer)

    def _continuing(self, digest: bytes, named: str) -> _Tail | None:
        """A conversation of this digest: the newest that nobody continues yet, or else the newest."""
        known = [tail for tail in self._tails.get(digest, ()) if named in ("", tail.session)]
        fresh = [tail for tail in known if tail.call not in self._continued]
        return next(reversed(fresh or known), None)

    def _by_id(self, ids: Iterable[str]) -> str:
        """The session that gave these ids, if it alone did."""
        owners = set[str]().union(*(self._sessions_of_id.get(name, ()) for name in ids))
        return owners.pop() if len(owners) == 1 else ""

    def _by_trace(self, trace: str) -> str:
        match = _TRACE.fullmatch(trace)
        return match[1] if match else ""

    def done(self, session: str, now: float) -> None:
        """A call has ended, answered or not."""
        if session in self._open:
            self._open[session].running -= 1
            self._open[session].last = now

    def answered(
        self, session: str, call: str, tails: Iterable[bytes], ids: Iterable[str], response_id: str = ""
    ) -> None:
        """A call was answered and is kept: `tails` are the digests of the conversations that it may go on as, one an
        answer."""
        opened = self._open.get(session)
        if opened is None:
            return
        opened.calls.add(call)
        numbered = [*enumerate(tails), *([(0, response_id.encode())] if response_id else [])]
        for number, digest in numbered:
            self._tails.setdefault(digest, []).append(_Tail(session, call, number))
            opened.tails.add(digest)
        for name in ids:
            self._sessions_of_id.setdefault(name, set()).add(session)
            opened.ids.add(name)

    def restore(self, session: str, part: int, last: float) -> None:
        """An open session that was read from the disk."""
        self._open.setdefault(session, _Open(part, last)).last = last

    def restore_call(self, session: str, call: str, parent: str, tails: str, ids: str, response_id: str) -> None:
        """A call of an open session that was read from the disk, digests and ids as JSON."""
        self.answered(session, call, map(bytes.fromhex, json.loads(tails)), json.loads(ids), response_id)
        if parent:
            self._continued.add(parent)

    def knows(self, session: str) -> bool:
        return session in self._open

    def begin(self, session: str, now: float, budget: SessionBudget = SessionBudget()) -> None:
        """A session that was declared: its calls are to come."""
        self._open.setdefault(session, _Open(0, now)).budget = budget

    def spend(self, session: str, tokens: int | None, cost: float | None) -> None:
        """What an answer took; None where nobody knows."""
        if opened := self._open.get(session):
            opened.tokens, opened.cost = known_sum((opened.tokens, tokens)), known_sum((opened.cost, cost))

    def overspent(self, session: str) -> str:
        """Why a session may ask for no more, or empty. What nobody knows is spent."""
        opened = self._open.get(session)
        if opened is None:
            return ""
        budget = opened.budget
        for what, used, most in (("tokens", opened.tokens, budget.tokens), ("cost", opened.cost, budget.cost)):
            if spent(used, most):
                return f"the run's budget of {what} is spent: {most:g}"
        return ""

    def end(self, session: str) -> None:
        """Its outcome is known: no call is waited for."""
        if session in self._open:
            self._open[session].is_over = True

    def over(self, now: float, idle: float) -> list[tuple[str, int]]:
        """(session, part) of those that are over; they are forgotten here."""
        ended = [
            name
            for name, opened in self._open.items()
            if opened.running <= 0 and (opened.is_over or now - opened.last >= idle)
        ]
        return [(name, self._forget(name)) for name in ended]

    def _forget(self, session: str) -> int:
        opened = self._open.pop(session)
        for digest in opened.tails:
            left = [entry for entry in self._tails.pop(digest, ()) if entry.session != session]
            if left:
                self._tails[digest] = left
        for name in opened.ids:
            self._sessions_of_id[name].discard(session)
            if not self._sessions_of_id[name]:
                del self._sessions_of_id[name]
        self._continued -= opened.calls
        return opened.part


def token_of(headers: Mapping[str, str]) -> str:
    """The key that a client brings, as OpenAI's clients do or as Anthropic's."""
    return headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")


def named_session(headers: Mapping[str, str], path_session: str, key: str = "") -> str:
    """The session that a request names, or empty: with a key as `key:name`, without as `sk-fw-name`, or in a header.

    Raises `ValueError` for a name that cannot be one.
    """
    begin = f"{key}:" if key else KEY
    token = token_of(headers)
    by_key = token.removeprefix(begin) if token.startswith(begin) else ""
    name = path_session or headers.get(HEADER, "") or by_key
    if name and not NAME.fullmatch(name):
        raise ValueError("a session's name has 1 to 64 letters, digits, and . _ - between them")
    return name
