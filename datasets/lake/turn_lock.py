"""A lock that lets one turn at a time run on a lake, across processes, machines and Prefect servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import LakeBusyError, LakeError

TURN_LOCK = 0x7475726E
"""The advisory lock of a turn on PostgreSQL; a database holds one lake."""


@contextmanager
def sole_turn(lake: Lake) -> Iterator[Callable[[], None]]:
    """Hold the lake's turn. Raises `LakeBusyError` while another process does.

    The operating system, or PostgreSQL, lets go when the holder is gone, however it went: no lease has to run out,
    and no clock is asked. PostgreSQL also lets go when it restarts: what this yields takes the turn again if it was
    lost, and raises `LakeBusyError` if another process has it by then.
    """
    with _postgresql(lake) if lake.catalog.engine.dialect.name == "postgresql" else _file(lake) as assure:
        yield assure


def _busy(lake: Lake) -> LakeBusyError:
    return LakeBusyError(f"another turn runs on {lake.name}; wait until it ends, or stop it")


@contextmanager
def _file(lake: Lake) -> Iterator[Callable[[], None]]:
    lock = FileLock(f"{lake.catalog.engine.url.database}.turn")  # where the catalog is: roots may differ
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _busy(lake) from None
    except OSError as error:
        raise LakeError(f"{lake.root} cannot be written ({error.strerror}); free it, or set another data_dir") from None
    try:
        yield lambda: None
    finally:
        lock.release()


@contextmanager
def _postgresql(lake: Lake) -> Iterator[Callable[[], None]]:
    with ExitStack() as sessions:

        def take() -> Connection:
            connection = sessions.enter_context(lake.catalog.session())
            if not connection.exec_driver_sql(f"select pg_try_advisory_lock({TURN_LOCK})").scalar():
                raise _busy(lake)
            return connection

        current = take()

        def assure() -> None:
            nonlocal current
            try:
                current.exec_driver_sql("select 1")
            except SQLAlchemyError:  # lost just now, or before, when it could not be taken again
                current = take()

        yield assure
