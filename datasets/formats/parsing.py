"""From files to JSON records, within bounds: lines of any length, documents of any depth, numbers of any size."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel.datasets.formats.records import ReadContext
from flywheel.errors import RecordError, reason_of

RECORD_BYTES = 64 << 20
"""The longest line, or whole document, that is read."""
DEPTH = 100
"""Levels of nesting that are kept."""
DEEPER = f"nested deeper than {DEPTH} levels"
BLOCK = 1 << 16
Splitter = Callable[[Any], list[Any]]
"""A whole document as its records."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as it stands in a file; `line` counts from 1, and documents of one record have line 1.

    `problem`: why its bytes cannot be read as a record at all, or empty; `text` is then how they begin.
    """

    path: Path
    line: int
    text: bytes
    problem: str = ""


def raw_records(path: Path, root: Path, split: Splitter | None, most: int = RECORD_BYTES) -> Iterator[Raw]:
    """Lines of a JSON-lines file; any other file is one record, or a list of them.

    `root` is the folder, or the very file, that was asked for: nothing outside it is read. Memory holds one record.
    """
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            yield Raw(path, 1, b"", "a link to a file elsewhere; name that file itself")
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        yield Raw(path, 1, b"", f"cannot be opened: {reason_of(error)}")
        return
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            yield Raw(path, 1, b"", "not a regular file")
        elif path.suffix == ".jsonl":
            yield from _lines(path, file, most)
        elif status.st_size > most:
            yield Raw(path, 1, file.read(BLOCK), too_long(most))
        else:
            yield from _document(path, file.read(most + 1), split)


def _lines(path: Path, file: Any, most: int) -> Iterator[Raw]:
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most and not line.endswith(b"\n"):
            yield Raw(path, number, line[:BLOCK], too_long(most))
            while (rest := file.readline(BLOCK)) and not rest.endswith(b"\n"):
                pass
        elif line.strip():
            yield Raw(path, number, line)


def _document(path: Path, text: bytes, split: Splitter | None) -> Iterator[Raw]:
    if split is None and text.lstrip()[:1] == b"{":
        yield Raw(path, 1, text)
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None  # refused when it is read
    if split is not None and whole is not None:
        whole = split(whole)
    if not isinstance(whole, list):
        yield Raw(path, 1, text)
        return
    for number, record in enumerate(whole, start=1):
        try:
            yield Raw(path, number, json.dumps(record).encode())
        except RecursionError:
            yield Raw(path, number, b"", DEEPER)


def too_long(most: int) -> str:
    return f"longer than {most >> 20} MiB" if most >= 1 << 20 else f"longer than {most} bytes"


def parsed(text: bytes, source: ReadContext) -> Any:
    """A record's JSON. What is nested too deep is left out and reported. Raises `RecordError` for what is no JSON."""
    try:
        record = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {' '.join(str(error).split())}") from error
    return _pruned(record, source)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _pruned(record: Any, source: ReadContext) -> Any:
    """The record without what lies deeper than `DEPTH`; level by level, so that no depth is too much."""
    level = [record] if isinstance(record, dict | list) else []
    for depth in range(DEPTH):
        inside: list[Any] = []
        for value in level:
            entries = value.values() if isinstance(value, dict) else value
            inside += [entry for entry in entries if isinstance(entry, dict | list)]
        if not inside:
            return record
        if depth == DEPTH - 1:
            for value in inside:
                value.clear()
                source.count_unread(DEEPER)
        level = inside
    return record
