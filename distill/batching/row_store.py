"""Tokenised rows of one epoch on disk, memory-mapped, so that memory does not grow with the corpus.

A row store is one Arrow file, memory-mapped: rows are written as they are made, and the file system keeps in memory
what there is room for. Memory of ours holds the length and the place of each row, some 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flywheel.distill.batching.examples import Example

BATCH = 256
"""Rows that are written together."""
Owned = tuple[str, Example]
"""(trajectory, a row made of it)."""
_OWNER, _GROUP, _IDS, _WEIGHT = "owner", "group", "ids", "weight"


class RowStore(Sequence[Example]):
    """Rows in the order of their trajectories' ids, wherever in the file they lie."""

    def __init__(self, path: Path) -> None:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._columns = [name for name in file.schema.names if name not in (_OWNER, _GROUP, _IDS, _WEIGHT)]
        owners = pa.chunked_array([batch[_OWNER] for batch in self._batches], pa.string())
        places = pa.array(np.arange(len(owners)))
        keys = [("owner", "ascending"), ("place", "ascending")]
        self._order = pc.sort_indices(pa.table({"owner": owners, "place": places}), keys).to_numpy()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        lengths = [pc.list_value_length(batch[_IDS]).to_numpy() for batch in self._batches]
        self.lengths: NDArray[np.int32] = np.concatenate([np.zeros(0, np.int32), *lengths])[self._order]
        """Tokens of each row."""

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        batch, row = self._find(place)
        columns = {name: _values(batch[name], row) for name in self._columns}
        return Example(_values(batch[_IDS], row), _values(batch[_WEIGHT], row), columns, batch[_GROUP][row].as_py())

    def owner(self, place: int) -> str:
        """The trajectory that a row was made of."""
        batch, row = self._find(place)
        name: str = batch[_OWNER][row].as_py()
        return name

    @property
    def groups(self) -> NDArray[np.int64]:
        """The group of each row, -1 where it has none."""
        batch_groups = [batch[_GROUP].to_numpy() for batch in self._batches]
        groups: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *batch_groups])[self._order]
        return groups

    @property
    def weight(self) -> float:
        """Weight of all targets together."""
        return float(sum(pc.sum(batch[_WEIGHT].flatten()).as_py() or 0.0 for batch in self._batches))

    def _find(self, place: int) -> tuple[pa.RecordBatch, int]:
        stored = int(self._order[place])
        batch = int(np.searchsorted(self._starts, stored, side="right")) - 1
        return self._batches[batch], stored - int(self._starts[batch])


class RowWriter:
    """Fills a row store; it is there once `close` has named it."""

    def __init__(self, path: Path) -> None:
        self._path, self._draft = path, path.with_suffix(".new")
        self._waiting: list[Owned] = []
        self._file: pa.ipc.RecordBatchFileWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._flush()
        if self._file:
            self._file.close()
        if kind is None:
            self._draft.replace(self._path)

    def add(self, owner: str, example: Example) -> None:
        self._waiting.append((owner, example))
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting and self._file:
            return
        batch = _batch(self._waiting)
        if self._file is None:
            self._draft.parent.mkdir(parents=True, exist_ok=True)
            self._file = pa.ipc.new_file(str(self._draft), batch.schema)
        self._file.write_batch(batch)
        self._waiting = []


def write_rows(path: Path, rows: Iterable[Owned]) -> RowStore:
    """Write rows as one row store."""
    with RowWriter(path) as store:
        for owner, example in rows:
            store.add(owner, example)
    return RowStore(path)


def with_columns(
    store: RowStore, path: Path, more: Callable[[range, Sequence[str], Sequence[Example]], Iterable[Example]]
) -> RowStore:
    """A store of the same rows with what `more` (places, owners, rows) makes of them, `BATCH` at a time."""

    def rows() -> Iterator[Owned]:
        for start in range(0, len(store), BATCH):
            places = range(start, min(start + BATCH, len(store)))
            owners = [store.owner(place) for place in places]
            yield from zip(owners, more(places, owners, store[start : places.stop]), strict=True)

    return write_rows(path, rows())


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """Tokens of each row."""
    if isinstance(examples, RowStore):
        lengths: list[int] = examples.lengths.tolist()
        return lengths
    return [len(example.ids_T) for example in examples]


def groups_of(examples: Sequence[Example]) -> list[int]:
    """The group of each row."""
    if isinstance(examples, RowStore):
        groups: list[int] = examples.groups.tolist()
        return groups
    return [example.group for example in examples]


def weight_of(examples: Sequence[Example]) -> float:
    """Weight of all targets together."""
    if isinstance(examples, RowStore):
        return examples.weight
    return float(sum(float(example.weight_T.sum()) for example in examples))


def _batch(rows: Sequence[Owned]) -> pa.RecordBatch:
    examples = [example for _, example in rows]
    columns: dict[str, pa.Array] = {
        _OWNER: pa.array([owner for owner, _ in rows], pa.string()),
        _GROUP: pa.array([example.group for example in examples], pa.int64()),
        _IDS: _lists([example.ids_T for example in examples], np.int32),
        _WEIGHT: _lists([example.weight_T for example in examples], np.float32),
    }
    for name in examples[0].columns if examples else ():
        columns[name] = _lists([example.columns[name] for example in examples], examples[0].columns[name].dtype)
    return pa.RecordBatch.from_pydict(columns)


def _lists(parts: Sequence[NDArray[Any]], dtype: Any) -> pa.ListArray:
    """A list a part: of numbers for parts (T,), of lists of K numbers for parts (T, K)."""
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    flat = np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
    values = pa.array(flat.reshape(-1))
    if flat.ndim > 1:
        values = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _values(lists: pa.ListArray, row: int) -> NDArray[Any]:
    """The (T,) or (T, K) of one row, without a copy."""
    start, end = lists.offsets[row].as_py(), lists.offsets[row + 1].as_py()
    values = lists.values
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        flat: NDArray[Any] = values.values.to_numpy()[start * width : end * width]
        return flat.reshape(-1, width)
    row_values: NDArray[Any] = values.to_numpy()[start:end]
    return row_values
