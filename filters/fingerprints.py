"""Fingerprints of episodes: digests for exact duplicates, MinHash for near duplicates.

MinHash by datasketch (Broder 1997): the share of equal values of two signatures estimates the Jaccard similarity of
their sets. Candidates share one of 16 bands of 8 values; at a similarity of 0.9 all but 1 in 8,000 pairs do.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasketch import MinHash
from numpy.typing import NDArray

from flywheel.arrow import ARROW_SCHEMAS
from flywheel.filters.batch import Bools, TrajectoryBatch, codes

SOURCE = "minhash/2"
VALUES = 128
BANDS = 16
Hashes = NDArray[np.uint64]
_MIX = np.uint64(0x9E3779B97F4A7C15)


def fingerprints(batch: TrajectoryBatch) -> pa.Table:
    """A row a trajectory, in the batch's order; `duplicate_of` and `similarity` are left empty."""
    action_T, view_T = _hashes(batch.steps["action"]), _hashes(batch.steps["observation"])
    before_T = np.where(batch.first_T, np.uint64(0), np.roll(action_T, 1))
    deeds_2T = np.stack([_pair(before_T, action_T), _pair(view_T, action_T)])
    seconds_T = batch.step_numbers("seconds")
    left_T, timed = _pair(_pair(action_T, view_T), seconds_T.view(np.uint64)), batch.sum_of(seconds_T) > 0
    actions, essentials, records, episodes = [], [], [], []
    kept_T = without_loops(batch)
    for row, task in enumerate(batch.texts("task_id")):
        mine = slice(batch.starts_N1[row], batch.starts_N1[row + 1])
        actions.append(_digest(task.encode(), action_T[mine]))
        essentials.append(_digest(task.encode(), action_T[mine][kept_T[mine]]))
        records.append(_digest(b"record" + task.encode(), left_T[mine]) if timed[row] else "")
        episodes.append(signature(deeds_2T[:, mine].ravel()))
    return pa.table(
        {
            "trajectory_id": batch.ids,
            "actions": actions,
            "essential": essentials,
            "record": records,
            "signature": pa.array(episodes, pa.list_(pa.uint32())),
            "bands": _band_lists(episodes, empty=batch.lengths_N == 0),
            "duplicate_of": pa.nulls(len(batch), pa.string()),
            "similarity": pa.nulls(len(batch), pa.float64()),
            "source": [SOURCE] * len(batch),
        },
        schema=ARROW_SCHEMAS["fingerprints"],
    )


def empty_fingerprints(batch: TrajectoryBatch) -> pa.Table:
    """Rows of what cannot be compared: it is like nothing."""
    schema = ARROW_SCHEMAS["fingerprints"]
    empty = {"actions": "", "essential": "", "record": "", "signature": [], "bands": [], "source": SOURCE}
    return pa.Table.from_pylist([{"trajectory_id": trajectory_id, **empty} for trajectory_id in batch.ids], schema)


def without_loops(batch: TrajectoryBatch) -> Bools:
    """(T,): which steps remain of each episode without its loops, that is without what led back to an equal state and
    neither earned a reward nor opened a document. Padding with no-ops, or with actions that are undone, is removed."""
    count = batch.steps.num_rows
    noted = np.flatnonzero(pc.not_equal(batch.steps["document"], "").to_numpy())
    _, first = np.unique(batch.owner_T[noted] * count + codes(batch.steps["document"])[noted], return_index=True)
    fresh_T = np.zeros(count, np.bool_)
    fresh_T[noted[first]] = True  # a document that is read again opens nothing
    gained = (batch.step_numbers("reward") != 0) | np.roll(fresh_T, -1) | batch.last_T
    stretch_T = np.cumsum(gained) - gained  # ends at the latest with the episode
    _, place_T = np.unique((stretch_T << 32) + batch.state_T, return_inverse=True)  # states are numbered below 2**31
    last_of = np.zeros(count, np.int64)
    last_of[place_T] = np.arange(count)
    exit_T = last_of[place_T]  # the last step of the stretch that left the state in which a step began
    if np.array_equal(exit_T, np.arange(count)):
        return np.ones(count, np.bool_)
    kept, exits, step = np.zeros(count, np.bool_), exit_T.tolist(), 0
    while step < count:
        step = exits[step]
        kept[step] = True
        step += 1
    return kept


def signature(elements: Hashes) -> NDArray[np.uint32]:
    """MinHash of a set, (128,)."""
    sketch = _blank().copy()
    sketch.update_batch((elements & np.uint64(0xFFFFFFFF)).tolist())
    return np.asarray(sketch.hashvalues, np.uint32)


def bands(values_NV: NDArray[np.uint32]) -> Hashes:
    """One hash for each run of values of each signature, (N, 16); the run's number is part of it."""
    folded = np.tile(np.arange(BANDS, dtype=np.uint64), (len(values_NV), 1))
    for place in range(VALUES // BANDS):
        folded = _pair(folded, values_NV[:, place :: VALUES // BANDS].astype(np.uint64))
    return folded


def _band_lists(signatures: list[NDArray[np.uint32]], empty: Bools) -> pa.Array:
    """Empty lists for episodes without steps: they are like nothing."""
    rows = bands(np.array(signatures, np.uint32).reshape(-1, VALUES))
    return pa.array([() if none else row for row, none in zip(rows, empty, strict=True)], pa.list_(pa.uint64()))


def _hashes(column: pa.ChunkedArray) -> Hashes:
    """A hash of each text, the same on every machine."""
    texts = column.cast(pa.binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))


def _pair(first: Hashes, second: Hashes) -> Hashes:
    """A hash of two hashes, in this order."""
    mixed = (first * _MIX) ^ (second + (first >> np.uint64(29)))
    result: Hashes = mixed ^ (mixed >> np.uint64(32))
    return result


def _digest(salt: bytes, hashes: Hashes) -> str:
    return blake2b(salt + np.ascontiguousarray(hashes).tobytes(), digest_size=16).hexdigest()


@cache
def _blank() -> MinHash:
    return MinHash(num_perm=VALUES, hashfunc=int)
