"""The catalog: which parts, trajectories, facts, policies and decisions exist, in one small SQL database.

SQLite on one machine, PostgreSQL for several: the same statements. The primary keys here are the exactly-once
guarantee. Migrations are numbered, go forward only, and a database of a newer schema is refused.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from flywheel.datasets.lake.engines import engine_of, still_engine, takes_no_writes
from flywheel.errors import LakeAwayError, LakeError

METADATA = MetaData()

MIGRATION = Table(
    "migration", METADATA, Column("version", Integer, primary_key=True), Column("applied_at", Float, nullable=False)
)
SNAPSHOT = Table(
    "snapshot",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("message", Text, nullable=False),
)
PART = Table(
    "part",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("row_count", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("begin_snapshot", Integer, nullable=False, index=True),
    Column("end_snapshot", Integer),
)
TRAJECTORY = Table(
    "trajectory",
    METADATA,
    Column("trajectory_id", String(64), primary_key=True),
    Column("part", String(64), nullable=False, index=True),
    Column("snapshot", Integer, nullable=False),
)
FACT = Table(
    "fact",
    METADATA,
    Column("kind", String(32), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("part", String(64), nullable=False),
    Column("snapshot", Integer, nullable=False),
)
POLICY = Table(
    "policy",
    METADATA,
    Column("policy_id", String(64), primary_key=True),
    Column("name", String(32), nullable=False),
    Column("version", String(32), nullable=False),
    Column("path", Text, nullable=False),
    Column("iteration", Integer, nullable=False),
    Column("snapshot", Integer, nullable=False),
    Column("parent_policy_id", String(64), nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("card", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
LINEAGE = Table(
    "lineage",
    METADATA,
    Column("policy_id", String(64), primary_key=True),
    Column("trajectory_id", String(64), primary_key=True, index=True),
)
GATE = Table(
    "gate",
    METADATA,
    Column("gate_id", String(64), primary_key=True),
    Column("iteration", Integer, nullable=False),
    Column("challenger_id", String(64), nullable=False),
    Column("champion_id", String(64), nullable=False),
    Column("promoted", Integer, nullable=False),
    Column("result", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
CHAMPION = Table(
    "champion",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("policy_id", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("gate_id", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)
ITERATION = Table(
    "iteration",
    METADATA,
    Column("iteration", Integer, primary_key=True),
    Column("config_digest", String(64), nullable=False),
    Column("champion_id", String(64), nullable=False),
    Column("report", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float),
)

DATASET_VERSION = Table(
    "dataset_version",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("snapshot", Integer, nullable=False),
    Column("condition", Text, nullable=False),
    Column("sample", Integer),
    Column("seed", Integer, nullable=False),
    Column("trajectories", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("card", Text, nullable=False),
    Column("flag", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
REVOCATION = Table(
    "revocation",
    METADATA,
    Column("trajectory_id", String(64), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
GARBAGE = Table(
    "garbage",
    METADATA,
    Column("file", String(128), primary_key=True),
    Column("since", Float, nullable=False),
)
"""Files that no snapshot reads any more; they are deleted once their grace is over."""
EVALUATION = Table(
    "evaluation",
    METADATA,
    Column("evaluation_id", String(64), primary_key=True),
    Column("policy_id", String(64), nullable=False, index=True),
    Column("policy", String(32), nullable=False),
    Column("iteration", Integer, nullable=False),
    Column("split", String(16), nullable=False),
    Column("snapshot", Integer, nullable=False),
    Column("tasks", Integer, nullable=False),
    Column("verified", Integer, nullable=False),
    Column("broken", Integer, nullable=False),
    Column("rate", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("mean_score", Float, nullable=False),
    Column("created_at", Float, nullable=False),
)
QUARANTINED = Table(
    "quarantined",
    METADATA,
    Column("record_id", String(64), primary_key=True),
    Column("source", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("format", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("record", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
"""Records that an import could not take, with the reason; `record` is the beginning of what stood there."""

REDACTION = Table(
    "redaction",
    METADATA,
    Column("part", String(64), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("secret", String(64), primary_key=True),
    Column("occurrences", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)
"""Secrets that were replaced before a file was written."""
ASSIGNMENT = Table(
    "assignment",
    METADATA,
    Column("unit", Text, primary_key=True),
    Column("split", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
)
"""The split of every task, family or environment, decided before the first episode of it is played."""
CALIBRATION = Table(
    "calibration",
    METADATA,
    Column("calibration_id", String(64), primary_key=True),
    Column("verifier", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("arguments", Text, nullable=False),
    Column("environment", String(64), nullable=False),
    Column("parameters", Text, nullable=False),
    Column("labelled", Integer, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("precision", Float, nullable=False),
    Column("recall", Float, nullable=False),
    Column("kappa", Float, nullable=False),
    Column("cheats_caught", Float, nullable=False),
    Column("honest_flagged", Float, nullable=False),
    Column("result", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

MIGRATIONS: tuple[tuple[int, tuple[Table, ...]], ...] = ((5, tuple(METADATA.sorted_tables)),)
"""Version → the tables that it adds. Versions before the first were never released."""
CATALOG_VERSION = MIGRATIONS[-1][0]


SNAPSHOTS_APART, AFTER = 1e-3, 1e-5
"""Seconds by which a snapshot, and what comes after one, are later at least."""


class Catalog:
    """A connection pool to the catalog. `write()` is one short transaction that has the write lock from its start."""

    def __init__(self, url: URL) -> None:
        self.name = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
        self._remote = url.get_backend_name() != "sqlite"
        self.read_only = not self._remote and takes_no_writes(Path(url.database or ""))
        """Does it lie where nothing can be written? Then it is read as it stands, and every write is refused."""
        self.engine = still_engine(Path(url.database or "")) if self.read_only else engine_of(url)
        self.close = weakref.finalize(self, self.engine.dispose)
        """Closes every connection; done at the latest when the catalog is no longer referenced."""
        self._migrate()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        if self.read_only:
            raise LakeError(f"{self.name} lies on a read-only mount: it can be read, nothing was changed")
        with self._told(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent state of all tables."""
        with self._told(), self.engine.connect().execution_options(reading=True) as connection:
            yield connection

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """A dedicated connection without a transaction, for locks that outlive transactions."""
        with self._told():
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT", session=True)
        try:
            yield connection
        finally:
            connection.invalidate()  # its locks must not return to the pool
            connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            gone = error.connection_invalidated or (self._remote and isinstance(error, OperationalError))
            kind = LakeAwayError if gone else LakeError
            raise kind(f"the catalog {self.name} failed and changed nothing: {reason}") from error

    def _migrate(self) -> None:
        try:
            with self.engine.begin() as connection:
                if not self.read_only:
                    MIGRATION.create(connection, checkfirst=True)
                current = connection.scalar(select(func.max(MIGRATION.c.version))) or 0
                if current > CATALOG_VERSION:
                    raise LakeError(
                        f"{self.name} has catalog schema {current}, this Flywheel knows {CATALOG_VERSION}; "
                        "upgrade Flywheel"
                    )
                if 0 < current < MIGRATIONS[0][0]:
                    raise LakeError(
                        f"{self.name} has catalog schema {current}, from before the first release, and is not read; "
                        "name a new lake"
                    )
                if self.read_only and current < CATALOG_VERSION:
                    raise LakeError(f"{self.name} has an older schema and cannot be upgraded on a read-only mount")
                known = set(inspect(connection).get_table_names())
                for version, tables in MIGRATIONS:
                    if version <= current:
                        continue
                    for table in tables:
                        if table.name not in known:
                            table.create(connection)
                    connection.execute(insert(MIGRATION).values(version=version, applied_at=time.time()))
        except DatabaseError as error:
            reason = " ".join(str(error.orig).split())
            if self._remote and isinstance(error, OperationalError):
                raise LakeAwayError(f"the catalog {self.name} does not answer: {reason}") from error
            raise LakeError(
                f"{self.name} is not a Flywheel catalog ({reason}); restore it or use another lake"
            ) from error


def has_catalog(url: URL) -> bool:
    """Is there a catalog? Creates nothing. Raises `LakeError` for a server that does not answer."""
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").is_file()
    engine = engine_of(url)
    try:
        return bool(inspect(engine).has_table(MIGRATION.name))
    except DBAPIError as error:
        name, reason = url.render_as_string(hide_password=True), " ".join(str(error.orig).split())
        raise LakeAwayError(f"the catalog {name} does not answer: {reason}") from error
    finally:
        engine.dispose()


def new_snapshot(connection: Connection, message: str) -> int:
    """The next snapshot number, gapless in commit order; its time is never before the last one's."""
    number = (connection.scalar(select(func.max(SNAPSHOT.c.id))) or 0) + 1
    at = max(time.time(), _last(connection) + SNAPSHOTS_APART)
    connection.execute(insert(SNAPSHOT).values(id=number, created_at=at, message=message))
    return number


def now(connection: Connection) -> float:
    """The time, in seconds since 1970, but never before what the catalog recorded last: a clock that was set back does
    not let what is new look old."""
    return max(time.time(), _last(connection) + AFTER)


def _last(connection: Connection) -> float:
    """When the newest of what is read as of a snapshot was recorded; 0 in an empty catalog."""
    newest = select(SNAPSHOT.c.created_at).order_by(SNAPSHOT.c.id.desc()).limit(1)
    stamps = (POLICY.c.created_at, CHAMPION.c.created_at, GATE.c.created_at, ITERATION.c.started_at)
    times = [connection.scalar(newest), *(connection.scalar(select(func.max(stamp))) for stamp in stamps)]
    return max((recorded_at for recorded_at in times if recorded_at is not None), default=0.0)
