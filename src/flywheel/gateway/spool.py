"""The spool: answered calls on this machine's disk until the lake has them.

A SQLite file in WAL mode. The gateway adds, in groups of one transaction each; the mover reads what is over and deletes
what the lake holds. What stands here is what went over the wire, secrets included: the file is its owner's alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FILE = "gateway/spool.sqlite"
BUSY_SECONDS = 30.0
_SCHEMA = """
create table if not exists session (
    name text, part integer, began real not null, last real not null, closed_at real, trajectory_id text,
    trajectories integer not null default 0, task text, primary key (name, part)
) without rowid;
create table if not exists call (
    id text primary key, session text not null, part integer not null,
    parent text not null, kept integer not null, answer integer not null,
    began real not null, seconds real not null, dialect text not null, status integer not null, problem text not null,
    tails text not null, ids text not null, response_id text not null, request blob not null, response blob not null
) without rowid;
create index if not exists call_of_session on call (session, part);
create table if not exists outcome (
    id text primary key, session text not null, success integer, score real, comment text not null, who text not null,
    created_at real not null
) without rowid;
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `request` is what was sent but for the `kept` items that `parent` holds already, up to its `answer`-th
    answer; `response` the whole answer, put together where it was streamed. `problem`: why it is no answer, or empty.
    `tails`, `ids` and `response_id`: what its conversation may be recognised by."""

    id: str
    session: str
    part: int
    parent: str
    kept: int
    answer: int
    began: float
    seconds: float
    dialect: str
    status: int
    problem: str
    tails: list[str]
    ids: list[str]
    response_id: str
    request: dict[str, Any]
    response: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was reported of a session."""

    id: str
    session: str
    success: bool | None
    score: float | None
    comment: str
    who: str
    created_at: float


@dataclass(frozen=True, slots=True)
class SessionPart:
    """A session, or what came of it after it was over. `trajectory_id`: its main trajectory, once the lake has it;
    `trajectories`: how many there are of it; `task`: the task that it was declared to be of, JSON, or None."""

    name: str
    part: int
    began: float
    last: float
    closed_at: float | None
    trajectory_id: str | None
    trajectories: int
    task: str | None


_CALL = [field.name for field in fields(Call)]
_INSERT_CALL = f"insert or ignore into call ({', '.join(_CALL)}) values ({', '.join(':' + name for name in _CALL)})"
_TOUCH = """insert into session (name, part, began, last) values (:session, :part, :began, :began)
            on conflict do update set last = max(last, :began + :seconds)"""
_DECLARE = "insert or ignore into session (name, part, began, last, task) values (:name, 0, :at, :at, :task)"
_INSERT_OUTCOME = "insert or ignore into outcome values (:id, :session, :success, :score, :comment, :who, :created_at)"
_CLOSE = "update session set closed_at = :at where name = :session and part = :part and closed_at is null"


@contextmanager
def connected(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a lake folder's spool, which is made where there is none."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    with closing(
        sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    ) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.executescript(_SCHEMA)
        yield connection


def sessions(connection: sqlite3.Connection, condition: str, *values: Any) -> list[SessionPart]:
    return [SessionPart(*row) for row in connection.execute(f"select * from session where {condition}", values)]


def calls_of(connection: sqlite3.Connection, session: str, part: int) -> list[Call]:
    """The calls of a session, in their order."""
    query = f"select {', '.join(_CALL)} from call where session = ? and part = ? order by began, id"
    return [_call(row) for row in connection.execute(query, (session, part))]


def outcomes(connection: sqlite3.Connection) -> list[Outcome]:
    """The outcomes that the lake does not have yet, in their order."""
    rows = connection.execute("select * from outcome order by created_at, id")
    return [Outcome(row[0], row[1], None if row[2] is None else bool(row[2]), *row[3:]) for row in rows]


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes that hold something."""
    pages, free, size = (connection.execute(f"pragma {name}").fetchone()[0] for name in _SIZES)
    return int((pages - free) * size)


_SIZES = ("page_count", "freelist_count", "page_size")


def _packed(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def _call(row: tuple[Any, ...]) -> Call:
    named = dict(zip(_CALL, row, strict=True))
    for name in ("request", "response"):
        named[name] = json.loads(named[name].decode(errors="replace"))
    return Call(**{**named, "tails": json.loads(named["tails"]), "ids": json.loads(named["ids"])})


@dataclass(frozen=True, slots=True)
class _Entry:
    """Statements that are written together or not at all. `tell` hears whether they are on the disk."""

    statements: list[tuple[str, dict[str, Any]]]
    takes_room: bool
    tell: Callable[[bool], None]


class SpoolWriter:
    """A thread that writes what it is handed, all that waits in one transaction, and says when it is on the disk."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._waiting: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self.used = 0
        """Bytes that wait for the lake."""
        self.problem = ""
        """Why the last write failed, or empty."""
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    async def call(self, call: Call) -> bool:
        """Is the call on the disk now? False where there is no room, or the disk fails."""
        row: dict[str, Any] = {name: getattr(call, name) for name in _CALL}
        row |= {"tails": json.dumps(call.tails), "ids": json.dumps(call.ids)}
        row |= {"request": _packed(call.request), "response": _packed(call.response)}
        return await self._written([(_TOUCH, row), (_INSERT_CALL, row)], takes_room=True)

    async def declare(self, session: str, task: str, at: float) -> bool:
        """Say what a new session will be of."""
        return await self._written([(_DECLARE, {"name": session, "task": task, "at": at})])

    async def outcome(self, outcome: Outcome) -> bool:
        return await self._written([(_INSERT_OUTCOME, asdict(outcome))])

    async def close_sessions(self, ended: Sequence[tuple[str, int]], at: float) -> bool:
        """No call will join these any more: the mover may take them."""
        return await self._written([(_CLOSE, {"session": name, "part": part, "at": at}) for name, part in ended])

    def stop(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    async def _written(self, statements: list[tuple[str, dict[str, Any]]], *, takes_room: bool = False) -> bool:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()

        def resolve(done: bool) -> None:
            if not future.done():
                future.set_result(done)

        def tell(done: bool) -> None:
            loop.call_soon_threadsafe(resolve, done)

        self._waiting.put(_Entry(statements, takes_room, tell))
        return await future

    def _run(self) -> None:
        group, goes_on = self._next_group()
        while group or goes_on:
            try:
                with connected(self._folder) as connection:
                    while group or goes_on:
                        self._write(connection, group)
                        group, goes_on = self._next_group() if goes_on else ([], False)
            except (sqlite3.Error, OSError) as error:
                self.problem = str(error)
                for entry in group:
                    entry.tell(False)
                group, goes_on = self._next_group() if goes_on else ([], False)

    def _write(self, connection: sqlite3.Connection, group: Sequence[_Entry]) -> None:
        """Write a group in one transaction, but for what there is no room for."""
        self.used = used_bytes(connection)
        is_full = self.used >= self._limit
        self.problem = f"the spool is full: {self.used >> 20} MiB wait for the lake" if is_full else ""
        kept = [entry for entry in group if not (is_full and entry.takes_room)]
        connection.execute("begin immediate")
        for entry in kept:
            for statement, values in entry.statements:
                connection.execute(statement, values)
        connection.execute("commit")
        for entry in group:
            entry.tell(entry in kept)

    def _next_group(self) -> tuple[list[_Entry], bool]:
        """(what waits, at least one entry; is there more to come?)."""
        entry, group = self._waiting.get(), list[_Entry]()
        while entry is not None:
            group.append(entry)
            try:
                entry = self._waiting.get_nowait()
            except queue.Empty:
                return group, True
        return group, False
