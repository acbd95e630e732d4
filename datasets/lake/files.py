"""Parquet as the lake writes it: streamed in row groups of bounded size, synced, hashed. Same rows, same bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel.errors import LakeError

GROUP_ROWS = 4_096
GROUP_BYTES = 4 << 20
"""A row group ends at whichever comes first: readers and writers hold one at a time."""
ZSTD_LEVEL = 3
KEY = "trajectory_id"


@dataclass(frozen=True, slots=True)
class Written:
    """What the catalog records of a file."""

    rows: int
    bytes: int
    sha256: str
    redacted: tuple[tuple[str, int], ...] = ()
    """How many secrets of each kind were replaced on the way in."""


class ParquetSink:
    """A Parquet file in the making. Rows wait until they fill a row group; `close` syncs the file and hashes it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.rows = path, 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        packed = "data" not in schema.names  # pictures are compressed already
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd" if packed else "none",
            compression_level=ZSTD_LEVEL if packed else None,
            use_dictionary=[KEY],
        )

    def write(self, table: pa.Table) -> None:
        width = max(1, _weight(table) // max(1, table.num_rows))
        length = max(1, min(GROUP_ROWS, GROUP_BYTES // width))
        for start in range(0, table.num_rows, length):
            piece = table.slice(start, length)
            if self._waiting_rows + piece.num_rows > GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
                self._flush()
            self._waiting.append(piece)
            self._waiting_rows += piece.num_rows
            self._waiting_bytes += width * piece.num_rows

    def close(self) -> Written:
        self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(self.rows, self.path.stat().st_size, sha256)

    def abandon(self) -> None:
        """Close and remove what was written so far."""
        with suppress(OSError):
            self._writer.close()
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting_rows:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self.rows += self._waiting_rows
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0


def write_parquet(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> Written:
    """Write tables of one schema as one file. Raises `LakeError` where the disk refuses, and leaves nothing there."""
    with writing(path):
        sink = ParquetSink(path, schema)
        try:
            for table in tables:
                sink.write(table)
            return sink.close()
        except BaseException:
            sink.abandon()
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells in one line what the disk refused."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise LakeError(f"cannot write {path}: {reason}; fix it and run again") from error


def flaw_of(address: str, filesystem: Any, expected_bytes: int, sha256: str = "") -> str:
    """What is wrong with a Parquet file by its size and footer, or by its checksum where one is given; or nothing."""
    opener = filesystem or fsspec.filesystem("file")
    try:
        size = opener.size(address)
        if size != expected_bytes:
            return f"has {size} bytes instead of {expected_bytes}"
        with opener.open(address, "rb") as file:
            if sha256:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
                return "" if digest.hexdigest() == sha256 else "has other bytes than were written"
            file.seek(max(0, size - 8))
            tail = file.read(8)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    length = int.from_bytes(tail[:4], "little")
    return "" if len(tail) == 8 and tail[4:] == b"PAR1" and 0 < length <= size - 12 else "has no Parquet footer"


Source = tuple[str, object]
"""Address of a file and the file system that opens it; None is the local one."""


def read_rows(source: Source, trajectory_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows, whole or in part, of some trajectories in one file, in its order. Raises `LakeError` if it is broken.

    Of a large file only the row groups that hold one of them are read.
    """
    wanted = pa.array(trajectory_ids, pa.string())

    def mine(file: pq.ParquetFile) -> npt.NDArray[np.int64]:
        ids = file.read([KEY], use_threads=False)[KEY]
        return np.flatnonzero(pc.is_in(ids, value_set=wanted).to_numpy())

    return _read(source, lambda path, filesystem: _rows_in(path, filesystem, wanted, columns, mine))


def read_steps(
    steps: Source, trajectories: Source, trajectory_ids: Sequence[str], columns: Sequence[str] | None = None
) -> pa.Table:
    """`read_rows` of a part's steps. The lengths of its trajectories, which lie in the same order, tell where."""
    wanted = pa.array(trajectory_ids, pa.string())
    length = 0

    def mine(file: pq.ParquetFile) -> npt.NDArray[np.int64]:
        nonlocal length
        order = _read(
            trajectories, lambda path, opener: pq.read_table(path, columns=[KEY, "length"], filesystem=opener)
        )
        lengths = order["length"].to_numpy()
        ends = np.cumsum(lengths)
        places = np.flatnonzero(pc.is_in(order[KEY], value_set=wanted).to_numpy())
        length = int(lengths[places].sum())
        runs = [np.arange(ends[place] - lengths[place], ends[place]) for place in places]
        return np.concatenate([np.zeros(0, np.int64), *runs])

    table = _read(steps, lambda path, filesystem: _rows_in(path, filesystem, wanted, columns, mine))
    return read_rows(steps, trajectory_ids, columns) if length and table.num_rows != length else table


def _rows_in(
    path: str,
    filesystem: object,
    wanted: pa.Array,
    columns: Sequence[str] | None,
    rows: Callable[[pq.ParquetFile], npt.NDArray[np.int64]],
) -> pa.Table:
    """Rows of the wanted trajectories; `rows` says where in a file of many row groups they lie."""
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        groups = list(range(file.num_row_groups))
        if len(groups) > 1:
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
            groups = np.unique(np.searchsorted(ends, rows(file), side="right")).tolist()
            groups = [group for group in groups if group < len(ends)]
        names = file.schema_arrow.names
        read = None if columns is None else [name for name in dict.fromkeys((KEY, *columns)) if name in names]
        nothing = file.schema_arrow.empty_table() if read is None else file.schema_arrow.empty_table().select(read)
        table = pa.concat_tables([nothing, *(file.read_row_group(group, read, use_threads=False) for group in groups)])
    mine = pc.is_in(table[KEY], value_set=wanted)
    places = np.flatnonzero(mine.to_numpy())
    together = len(places) > 0 and places[-1] - places[0] + 1 == len(places)
    table = table.slice(places[0], len(places)) if together else table.filter(mine)
    return table if columns is None else table.select([name for name in columns if name in names])


def row_groups(source: Source, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """All rows of a file, a row group at a time."""
    file = _read(source, lambda path, filesystem: pq.ParquetFile(path, filesystem=filesystem))
    with file:
        for number in range(file.num_row_groups):
            yield _read(source, lambda path, filesystem, number=number: file.read_row_group(number, columns))


def _read(source: Source, work: Callable[..., pa.Table]) -> pa.Table:
    try:
        return work(*source)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise LakeError(f"broken Parquet file: {source[0]} ({reason}); see: flywheel lake check") from error


def _weight(table: pa.Table) -> int:
    """Bytes of a table's values, the same however they are laid out in memory."""
    weight = 8 * table.num_rows * table.num_columns
    for column in table.columns:
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            weight += pc.sum(pc.binary_length(column)).as_py() or 0
    return int(weight)


def sync_directory(path: Path) -> None:
    """Make renames in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
