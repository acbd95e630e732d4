"""A watchdog that ends this process when work that cannot be interrupted exceeds its time or memory."""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flywheel.errors import QueryError

GRACE_SECONDS = 1.0
"""How long something may take to heed an interrupt."""
SLACK = 400 << 20
"""Bytes that a process needs besides the memory that its query may take."""
POLL_SECONDS = 0.02
EXIT_USER_ERROR = 2
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:(%)|([KMGT]?)i?B?)\s*", re.IGNORECASE)


@contextmanager
def resource_limits(seconds: float, memory: str) -> Iterator[None]:
    """End this process with one line and exit code 2 if what runs inside takes longer, or more memory, than that."""
    deadline, max_bytes = time.monotonic() + seconds + GRACE_SECONDS, bytes_of(memory) + SLACK
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(POLL_SECONDS):
            if time.monotonic() > deadline:
                _end(f"the query took longer than {seconds:g} s; narrow it or raise the limit")
            if resident() > max_bytes:
                _end(f"the query needs more memory than {memory}; narrow it or raise the limit")

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        with _data_limit(max_bytes):
            yield
    except MemoryError as error:
        raise QueryError(f"the query needs more memory than {memory}; narrow it or raise the limit") from error
    finally:
        finished.set()


@contextmanager
def _data_limit(extra_bytes: int) -> Iterator[None]:
    """Have the system refuse this process more memory than that, also where no thread gets to look (Linux)."""
    now = _data_segment_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if now is None or any(limit != resource.RLIM_INFINITY and now + extra_bytes > limit for limit in (soft, hard)):
        yield  # what was set before is stricter
        return
    resource.setrlimit(resource.RLIMIT_DATA, (now + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_segment_bytes() -> int | None:
    """Bytes of private memory that this process may write to now, where the system tells."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"VmData:\s+(\d+) kB", status)
    return int(match[1]) << 10 if match else None


def bytes_of(memory: str) -> int:
    """A size in DuckDB's notation, its units as powers of two: `4GB`, or `70%` of this machine's memory. Raises
    `QueryError` for anything else."""
    match = _SIZE.fullmatch(memory)
    if not match:
        raise QueryError(f"--memory '{memory}' is no size; write it as 4GB or 70%")
    number, percent, unit = match.groups()
    if percent:
        return int(float(number) / 100 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return int(float(number) * _UNITS[unit.upper()])


def resident() -> int:
    """Bytes of memory that this process occupies now; where the system does not tell, the most that it ever did."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def _end(message: str) -> None:
    os.write(sys.stderr.fileno(), f"flywheel: {message}\n".encode())
    os._exit(EXIT_USER_ERROR)
