"""Streaming a pin into training: Arrow tables in a seeded order, shared out over ranks and workers, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import IterableDataset, get_worker_info

from flywheel.datasets.files import read_rows
from flywheel.datasets.lake import Lake
from flywheel.datasets.pins import Pin, ids

KEYS = ("trajectory_id", "index")
Window = list[tuple[str, list[str]]]
"""Segments with the trajectories that are wanted of each."""


class PinStream(IterableDataset[pa.Table]):
    """Steps of a pin as Arrow tables of `batch` whole trajectories, ordered by trajectory and index within a table.

    Segments are drawn in random order until they hold `shuffle` trajectories; these are read once, shuffled and cut
    into tables: memory is bounded by `shuffle`, and every file is read once an epoch. The order is a function of
    (seed, epoch) and of how the lake is cut into segments, which compaction changes. Each window goes to one worker
    of one of `ranks` ranks. `start_batch` resumes an epoch after so many tables of this rank.
    """

    def __init__(
        self,
        lake: Lake,
        pin: Pin,
        *,
        columns: Sequence[str] | None = None,
        batch: int = 32,
        shuffle: int = 1024,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        start_batch: int = 0,
    ) -> None:
        self._place, self._columns, self._batch = lake.place, list(columns) if columns else None, batch
        self._rank, self._ranks, self._start = rank, ranks, start_batch
        self._order = [seed, epoch]
        self._windows = _windows(lake.segments_of(ids(lake, pin)), np.random.default_rng(self._order), shuffle)

    def __iter__(self) -> Iterator[pa.Table]:
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        left_out = len(range(mine, self._start, workers))
        lake = Lake(self._place)
        try:
            for number in range(self._rank * workers + mine, len(self._windows), self._ranks * workers):
                window = self._windows[number]
                tables = -(-sum(len(wanted) for _, wanted in window) // self._batch)
                if left_out < tables:
                    yield from self._read(lake, window, number, left_out)
                left_out = max(0, left_out - tables)
        finally:
            lake.close()

    def _read(self, lake: Lake, window: Window, number: int, first: int) -> Iterator[pa.Table]:
        """The window's tables from the `first` on."""
        columns = list(dict.fromkeys((*KEYS, *self._columns))) if self._columns else None
        parts = [read_rows(lake.source(name, "steps"), wanted, columns) for name, wanted in window]
        table = pa.concat_tables(parts, promote_options="default")
        everyone = sorted(one for _, wanted in window for one in wanted)
        chance = np.random.default_rng([*self._order, number])
        place = chance.permutation(len(everyone))
        position = place[pc.index_in(table["trajectory_id"], value_set=pa.array(everyone)).to_numpy()]
        order = np.lexsort((table["index"].to_numpy(), position))
        table, position = table.take(order), position[order]
        if self._columns:
            table = table.select(self._columns)
        edges = np.searchsorted(position, range(first * self._batch, len(everyone) + self._batch, self._batch))
        for start, end in pairwise(edges.tolist()):
            yield table.slice(start, end - start)


def _windows(segments: dict[str, list[str]], chance: np.random.Generator, shuffle: int) -> list[Window]:
    """Segments in random order, grouped until a group holds `shuffle` trajectories."""
    names = sorted(segments)
    windows: list[Window] = []
    room = 0
    for index in chance.permutation(len(names)):
        if room <= 0:
            windows.append([])
            room = shuffle
        windows[-1].append((names[index], segments[names[index]]))
        room -= len(segments[names[index]])
    return windows
