"""Connections to the catalog's database: SQLite, PostgreSQL, and SQLite where nothing can be written."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import NoSuchModuleError

from flywheel.errors import LakeError

WRITER_LOCK = 0x666C7977
"""The advisory lock that makes writers take turns on PostgreSQL, as SQLite's write lock does."""


def engine_of(url: URL) -> Engine:
    """A connection pool to a database that is written and read. Raises `LakeError` without a driver for it."""
    try:
        return _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise LakeError(
            f"no driver for {url.get_backend_name()}; pip install 'trajectory-flywheel[postgresql]'"
        ) from error


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def _configure(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None
        for pragma in ("journal_mode=wal", "synchronous=full", "foreign_keys=on", "secure_delete=on"):
            connection.execute(f"pragma {pragma}")

    @event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("begin" if reading else "begin immediate")

    return engine


def takes_no_writes(file: Path) -> bool:
    """Does a SQLite file lie on a read-only mount, or where this user may not write?"""
    return file.is_file() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def still_engine(file: Path) -> Engine:
    """An engine on a SQLite file that this user cannot write to.

    Somebody else may: it is read as SQLite reads a database that changes, where its log is there. On a read-only mount,
    what stands in the log alone is read from a copy.
    """
    log = file.with_name(f"{file.name}-wal")
    moving = log.is_file() and not os.statvfs(file).f_flag & os.ST_RDONLY
    if not moving and log.is_file() and log.stat().st_size:
        folder = tempfile.mkdtemp(prefix="flywheel-")
        file = Path(shutil.copy(file, folder))
        shutil.copy(log, folder)
        engine = create_engine(URL.create("sqlite", database=str(file)))
        weakref.finalize(engine, shutil.rmtree, folder, ignore_errors=True)
    else:
        address = f"file:{quote(str(file.absolute()))}?mode=ro{'' if moving else '&immutable=1'}&uri=true"
        engine = create_engine(f"sqlite:///{address}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("begin")

    @event.listens_for(engine, "connect")
    def _configure(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None

    return engine


def _postgresql(url: URL) -> Engine:
    engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)

    @event.listens_for(engine, "begin")
    def _lock(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("session", False):
            return
        if options.get("reading", False):
            connection.exec_driver_sql("set transaction isolation level repeatable read read only")
        else:
            connection.exec_driver_sql(f"select pg_advisory_xact_lock({WRITER_LOCK})")

    return engine
