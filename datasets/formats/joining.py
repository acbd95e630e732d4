"""Rows of a file that belong together, as one record."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

from flywheel.datasets.formats.parsing import Raw, too_long

Key = TypeVar("Key", bound=Hashable)
Records = Callable[[], Iterator[Raw]]


def join_rows(
    records: Records,
    most: int,
    key: Callable[[Any], Key | None],
    record_of: Callable[[Key, Mapping[Key, list[Any]]], Any],
    is_aside: Callable[[Raw], bool] = lambda raw: False,
) -> Iterator[Raw]:
    """A record for each key, where its first row stood; `record_of` makes it of its key and of all rows by key.

    Rows without a key come as they are, unless they are an aside, which is left out. More than `most` bytes of the
    others are refused.
    """
    rows: dict[Key, list[Any]] = {}
    first: dict[Key, Raw] = {}
    size = 0
    for raw in records():
        try:
            row = None if raw.problem else json.loads(raw.text)
            shared = key(row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            shared = None
        if shared is None:
            if raw.problem or not is_aside(raw):
                yield raw
            continue
        size += len(raw.text)
        if size > most:
            yield Raw(raw.path, raw.line, b"", too_long(most))
            return
        rows.setdefault(shared, []).append(row)
        first.setdefault(shared, raw)
    for shared, raw in first.items():
        yield Raw(raw.path, raw.line, json.dumps(record_of(shared, rows)).encode())


def join_by(key: Callable[[Any], str | None], name: str) -> Callable[[Records, int], Iterator[Raw]]:
    """How rows that share a key become one record, `{name: [row, …]}`."""
    return lambda records, most: join_rows(records, most, key, lambda shared, rows: {name: rows[shared]})
