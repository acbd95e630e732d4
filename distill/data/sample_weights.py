"""How often each episode of a corpus is drawn: `filters.balance` with what the lake knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from flywheel.config.curate import BalanceConfig
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.near_duplicates import near_duplicates
from flywheel.filters.balance import horizon_buckets, weights


def draw_weights(lake: Lake, ids: Sequence[str], settings: BalanceConfig, iteration: int) -> dict[str, float]:
    """Expected draws of each episode in an epoch. Only what was known when the iteration began decides difficulty."""
    connection = lake.connect(kinds=("fingerprints", "trajectories", "routes"))
    try:
        connection.register("given", pa.table({"trajectory_id": pa.array(ids, pa.string())}))
        rows = connection.sql(
            """select trajectory_id, length, coalesce(family, environment || ' ' || parameters) as family
               from trajectories semi join given using (trajectory_id) order by trajectory_id"""
        ).to_arrow_table()
        played = connection.sql(
            f"""select length, coalesce(family, environment || ' ' || parameters) as family, verified from trajectories
                where ours and policy_id = (select champion_id from iterations where iteration = {iteration})
                  and iteration < {iteration} and split <> 'test' and verified is not null"""
        ).to_arrow_table()
        connection.execute("create temp table mine as from fingerprints semi join given using (trajectory_id)")
        alike = near_duplicates(connection, "mine", "mine", settings.likeness) if settings.novelty else None
    finally:
        connection.close()
    names: list[str] = rows["trajectory_id"].to_pylist()
    lengths, families = rows["length"].to_numpy().astype(np.int64), rows["family"].to_pylist()
    tried: Counter[tuple[str, int]] = Counter()
    solved: Counter[tuple[str, int]] = Counter()
    for length, family, verified in zip(*played.to_pydict().values(), strict=True):
        bucket = (family, int(horizon_buckets(np.array([length]))[0]))
        tried[bucket] += 1
        solved[bucket] += verified
    buckets = list(zip(families, horizon_buckets(lengths).tolist(), strict=True))
    rates = np.array([(solved[bucket] + 1) / (tried[bucket] + 2) for bucket in buckets])
    near = Counter(alike["one"].to_pylist()) if alike is not None else Counter[str]()
    weighed = weights(
        settings,
        lengths=lengths,
        families=families,
        success=rates,
        neighbours=np.array([near[name] for name in names], np.int64),
    )
    return dict(zip(names, weighed.tolist(), strict=True))
