"""Many small questions to the newest state of a lake: one connection, opened anew when something was committed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self

import duckdb
import pyarrow as pa
from sqlalchemy import func, select

from flywheel.datasets.lake.catalog import (
    CHAMPION,
    DATASET_VERSION,
    EVALUATION,
    GATE,
    ITERATION,
    POLICY,
    REVOCATION,
    SNAPSHOT,
)
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import QueryLimits, check_statement, quoted, translated
from flywheel.trajectory import Trajectory

SETTLED_SECONDS = 2.0
"""So long a state is read before anyone looks for a newer one."""
_COUNTED = (ITERATION, POLICY, GATE, EVALUATION, REVOCATION, DATASET_VERSION)


class Readable(Protocol):
    """What answers questions about trajectories: a lake, or a `Reader` of one."""

    name: str

    def sql(self, statement: str) -> pa.Table: ...

    def trajectories(self, ids: Sequence[str]) -> list[Trajectory]: ...


class Reader:
    """A lake as it stood at most a few seconds ago, for many questions a second from several threads, one session after
    another.

    `tables`: statements over the views whose results are held in memory under a name, for as long as nothing is
    committed. Every statement is bound by the limits, and can only read.
    """

    def __init__(self, lake: Lake, tables: Mapping[str, str], limits: QueryLimits) -> None:
        self.lake, self.name = lake, lake.name
        self._tables, self._limits = tables, limits
        self._lock = threading.RLock()
        self.seen: tuple[Any, ...] = ()
        """The state that sessions read."""
        self._opened_at = -math.inf
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._held: dict[str, tuple[Any, ...]] = {}

    @contextmanager
    def session(self) -> Iterator[Self]:
        """Within it, nobody else asks and the state stays the same."""
        with self._lock:
            if self._connection is None or time.monotonic() - self._opened_at > SETTLED_SECONDS:
                state = self.state()
                if self._connection is None or state != self.seen:
                    self.close()
                    self._connection, self.seen, self._held = self._open(), state, {}
                self._opened_at = time.monotonic()
            yield self

    def expire(self) -> None:
        """Have the next session look for a newer state: somebody here has just written."""
        self._opened_at = -math.inf

    def close(self) -> None:
        with self._lock:
            if self._connection:
                self._connection.close()
                self._connection = None

    def state(self) -> tuple[Any, ...]:
        """Equal as long as nothing was committed; the snapshot's number comes first."""
        counts = [
            select(func.max(SNAPSHOT.c.id)).scalar_subquery(),
            select(func.max(CHAMPION.c.id)).scalar_subquery(),
            select(func.count(ITERATION.c.finished_at)).scalar_subquery(),
            *(select(func.count()).select_from(table).scalar_subquery() for table in _COUNTED),
        ]
        with self.lake.catalog.read() as connection:
            return tuple(connection.execute(select(*counts)).one())

    def sql(self, statement: str, values: Sequence[Any] = ()) -> pa.Table:
        """The result of one reading statement over the views and the held tables. Raises `QueryError` in one line."""
        with self._lock, translated(self._limits):
            check_statement(statement)
            assert self._connection, "a session is open"
            alarm = threading.Timer(self._limits.seconds, self._connection.interrupt)
            alarm.daemon = True
            alarm.start()
            try:
                table: pa.Table = self._connection.sql(statement, params=list(values)).to_arrow_table()
            finally:
                alarm.cancel()
        return table

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The same as Python values."""
        rows: list[dict[str, Any]] = self.sql(statement, values).to_pylist()
        return rows

    def hold(self, name: str, statement: str, values: Sequence[Any] = ()) -> None:
        """Keep the result of a statement under a name, until another takes it or something is committed."""
        asked = (statement, *values)
        if self._held.get(name) == asked:
            return
        result = self.sql(statement, values)
        assert self._connection
        self._connection.register("result", result)
        self._connection.execute(f"create or replace temp table {name} as from result")
        self._connection.unregister("result")
        self._held[name] = asked

    def trajectories(self, ids: Sequence[str]) -> list[Trajectory]:
        """Whole trajectories, in the order of the ids."""
        return self.lake.trajectories(ids)

    def _open(self) -> duckdb.DuckDBPyConnection:
        connection = self.lake.connect()
        for name, statement in self._tables.items():
            connection.execute(f"create temp table {name} as {statement}")
        connection.execute(f"set memory_limit = {quoted(self._limits.memory)}")
        connection.execute("set lock_configuration = true")
        return connection
