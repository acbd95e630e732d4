"""One turn at a time on a lake, whoever asks: two processes, two machines, two Prefect servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError

from flywheel.datasets.lake import Lake
from flywheel.errors import LakeError

TURN_LOCK = 0x7475726E
"""The advisory lock of a turn on PostgreSQL; a database holds one lake."""


@contextmanager
def sole_turn(lake: Lake) -> Iterator[None]:
    """Hold the lake's turn. Raises `LakeError` while somebody else does.

    The operating system, or PostgreSQL, lets go when the holder is gone, however it went: no lease has to run out,
    and no clock is asked.
    """
    holder = _postgresql(lake) if lake.catalog.engine.dialect.name == "postgresql" else _file(lake)
    with holder as held:
        if not held:
            raise LakeError(f"another turn runs on {lake.name}; wait until it ends, or stop it")
        yield


@contextmanager
def _file(lake: Lake) -> Iterator[bool]:
    lock = FileLock(lake.root / "turn.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise LakeError(f"{lake.root} cannot be written ({error.strerror}); free it, or set another data_dir") from None
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _postgresql(lake: Lake) -> Iterator[bool]:
    with lake.catalog.session() as connection:
        held = bool(connection.exec_driver_sql(f"select pg_try_advisory_lock({TURN_LOCK})").scalar())
        try:
            yield held
        finally:
            if held:
                with suppress(DBAPIError):  # a server that went away has let go by itself
                    connection.exec_driver_sql(f"select pg_advisory_unlock({TURN_LOCK})")
