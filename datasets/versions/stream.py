"""Streaming a dataset into training: Arrow tables in a seeded order, shared out over ranks and workers, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from flywheel.datasets.lake.files import read_rows
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.versions import DatasetVersion, ids

KEYS = ("trajectory_id", "index")
READERS = 2
"""Files that are read at once."""
Window = list[tuple[str, list[str]]]
"""Parts with the trajectories that are wanted of each."""


class DatasetStream(IterableDataset[pa.Table]):
    """Steps of a dataset as Arrow tables of `batch` whole trajectories, ordered by trajectory and index within a table.

    Parts, large ones in chunks, are drawn in random order until they hold `shuffle` trajectories; these are read
    once, shuffled and cut into tables: memory is bounded by `shuffle`, not by the lake. The order is a function of
    (seed, epoch) and of how the lake is cut into parts, which compaction changes. Each window goes to one worker
    of one of `ranks` ranks. `start_batch` resumes an epoch after so many tables of this rank.
    """

    def __init__(
        self,
        lake: Lake,
        dataset: DatasetVersion,
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
        self._windows = _windows(lake, lake.parts_of(ids(lake, dataset)), np.random.default_rng(self._order), shuffle)

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
        """The window's tables from the `first` on: slices of what was read, nothing is copied."""
        columns = list(dict.fromkeys((*KEYS, *self._columns))) if self._columns else None
        with ThreadPoolExecutor(READERS) as pool:
            chunks = list(pool.map(lambda chunk: lake.steps(chunk[0], chunk[1], columns), window))
        episodes = dict(episode for chunk in chunks for episode in _episodes(chunk))
        nothing = chunks[0].slice(0, 0)
        everyone = sorted(trajectory_id for _, wanted in window for trajectory_id in wanted)
        chance = np.random.default_rng([*self._order, number])
        order = chance.permutation(len(everyone)).tolist()
        for start in range(first * self._batch, len(order), self._batch):
            mine = [episodes.get(everyone[place], nothing) for place in order[start : start + self._batch]]
            table = pa.concat_tables(mine, promote_options="default")
            yield table.select(self._columns) if self._columns else table


def _episodes(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The steps of each trajectory, in order."""
    if not table.num_rows:
        return
    index = table["index"].to_numpy()
    starts = np.flatnonzero(index == 0).tolist()
    steps = np.arange(len(index)) - np.repeat(starts, np.diff([*starts, len(index)])) if starts else index
    if not starts or starts[0] or (steps != index).any():
        table = table.sort_by([(key, "ascending") for key in KEYS])
        starts = np.flatnonzero(table["index"].to_numpy() == 0).tolist()
    owners = table["trajectory_id"].take(pa.array(starts)).to_pylist()
    for owner, (start, end) in zip(owners, pairwise([*starts, table.num_rows]), strict=True):
        yield owner, table.slice(start, end - start)


def _windows(lake: Lake, parts: dict[str, list[str]], chance: np.random.Generator, shuffle: int) -> list[Window]:
    """Chunks of parts in random order, grouped until a group holds `shuffle` trajectories."""
    chunks: list[tuple[str, list[str]]] = []
    for name in sorted(parts):
        wanted = sorted(parts[name])
        if len(wanted) > shuffle:
            wanted = read_rows(lake.source(name, "trajectories"), wanted, KEYS[:1])[KEYS[0]].to_pylist()
        chunks += [(name, wanted[start : start + shuffle]) for start in range(0, len(wanted), shuffle)]
    windows: list[Window] = []
    room = 0
    for place in chance.permutation(len(chunks)):
        if room <= 0:
            windows.append([])
            room = shuffle
        windows[-1].append(chunks[place])
        room -= len(chunks[place][1])
    return windows
