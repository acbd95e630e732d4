"""Near-duplicate episodes by MinHash: candidates from a SQL join of LSH bands, then estimated similarity.

Memory holds the pairs that share a band, whatever the size of the lake.
"""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PAIRS = 1 << 16
"""Pairs of signatures compared at once."""


def near_duplicates(connection: duckdb.DuckDBPyConnection, left: str, right: str, least: float) -> pa.Table:
    """Pairs (one, other, similarity) of two relations of fingerprints that are at least so alike.

    The share of equal values of two MinHash signatures estimates the Jaccard similarity s of their sets; its standard
    error is sqrt(s (1 - s) / 128), 0.027 at 0.9.
    """
    pairs = connection.sql(
        f"""with a as (select trajectory_id as one, unnest(bands) as band from {left}),
                 b as (select trajectory_id as other, unnest(bands) as band from {right}),
                 hits as (select distinct one, other from a join b using (band) where one <> other)
            select one, other, x.signature as mine, y.signature as theirs
            from hits join {left} x on x.trajectory_id = one join {right} y on y.trajectory_id = other"""
    ).to_arrow_reader(PAIRS)
    tables = []
    for batch in pairs:
        alike = np.mean(_matrix(batch["mine"]) == _matrix(batch["theirs"]), axis=1)
        names = pa.Table.from_batches([batch]).select(["one", "other"])
        tables.append(names.append_column("similarity", pa.array(alike)).filter(pa.array(alike >= least)))
    empty = pa.schema([("one", pa.string()), ("other", pa.string()), ("similarity", pa.float64())]).empty_table()
    return pa.concat_tables([empty, *tables])


def _matrix(column: pa.Array) -> NDArray[np.uint32]:
    values: NDArray[np.uint32] = column.flatten().to_numpy()
    return values.reshape(len(column), -1)
