"""Streaming a pin into training: Arrow batches in a seeded order, shared out over ranks and workers, resumable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import IterableDataset, get_worker_info

from flywheel.datasets.files import read_rows
from flywheel.datasets.lake import Lake
from flywheel.datasets.pins import Pin, ids


class PinStream(IterableDataset[pa.Table]):
    """Steps of a pin's trajectories as Arrow tables of `batch` whole trajectories, ordered by trajectory and index.

    The order is a function of (seed, epoch). Rank `rank` of `ranks` and each data-loader worker take every n-th
    batch of it, so that together they read each trajectory once. `start_batch` resumes an epoch: so many batches of
    the whole epoch are left out, wherever they would have gone. Memory holds one batch: its files are read by row.
    """

    def __init__(
        self,
        lake: Lake,
        pin: Pin,
        *,
        columns: tuple[str, ...] | None = None,
        batch: int = 32,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        start_batch: int = 0,
    ) -> None:
        self._root, self._columns = lake.root, columns
        self._rank, self._ranks, self._start = rank, ranks, start_batch
        order = np.random.default_rng([seed, epoch]).permutation(pin.trajectories)
        found = ids(lake, pin)
        self._ids = [found[index] for index in order]
        self._batch = batch

    def __len__(self) -> int:
        """Batches of the whole epoch, over all ranks and workers."""
        return -(-len(self._ids) // self._batch)

    def __iter__(self) -> Iterator[pa.Table]:
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        lake = Lake(self._root)
        try:
            for number in range(self._start, len(self)):
                if number % (self._ranks * workers) == self._rank * workers + mine:
                    yield self._read(lake, self._ids[number * self._batch : (number + 1) * self._batch])
        finally:
            lake.close()

    def _read(self, lake: Lake, wanted: list[str]) -> pa.Table:
        parts = [read_rows(lake.path(name, "steps"), inside) for name, inside in lake.segments_of(wanted).items()]
        table = pa.concat_tables(parts, promote_options="default")
        position = pc.index_in(table["trajectory_id"], value_set=pa.array(wanted, pa.string())).to_numpy()
        ordered = table.take(np.lexsort((table["index"].to_numpy(), position)))
        return ordered.select(list(self._columns)) if self._columns else ordered
