"""GiGPO, group in group (arXiv 2505.10978): episodes are compared within their task, steps within their state. In SQL.

A_t = (R_i − mean of its task's episodes) / F + ω (G_t − mean of its task's steps from an equal state) / F, with G_t the
discounted return from step t (equations 5 to 8); F is the standard deviation, or 1. A group of one says nothing: 0.
"""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa

from flywheel.distill.credit.ragged import Runs
from flywheel.filters.batch import Floats, Ints

_STATEMENT = """
with episodes as (select episode, any_value("group") as "group", sum(reward) as earned from steps group by episode),
  compared as (
    select episode, "group", earned - avg(earned) over mine as apart, stddev_pop(earned) over mine as spread
    from episodes window mine as (partition by "group")),
  anchored as (
    select place, episode, "return" - avg("return") over same as apart, stddev_pop("return") over same as spread
    from steps window same as (partition by "group", state))
select coalesce(c.apart / {episode_scale}, 0) + {weight} * coalesce(a.apart / {step_scale}, 0) as advantage
from anchored a join compared c using (episode) order by place
"""
_STD = "case when {side}.spread > {tiny} then {side}.spread end"
TINY = 1e-9
"""Groups that vary less than this do not vary."""


def gigpo(
    reward_T: Floats, return_T: Floats, runs: Runs, group_N: Ints, state_T: Ints, weight: float, *, scale: bool
) -> Floats:
    """(T,). Equal numbers in `state_T` are equal states; `scale`: divide by standard deviations."""
    connection = duckdb.connect()
    try:
        connection.register(
            "steps",
            pa.table(
                {
                    "place": np.arange(runs.steps),
                    "episode": runs.owner_T,
                    "group": group_N[runs.owner_T],
                    "state": state_T,
                    "reward": reward_T,
                    "return": return_T,
                }
            ),
        )
        statement = _STATEMENT.format(
            weight=weight,
            episode_scale=_STD.format(side="c", tiny=TINY) if scale else "1",
            step_scale=_STD.format(side="a", tiny=TINY) if scale else "1",
        )
        return np.asarray(connection.sql(statement).to_arrow_table()["advantage"].to_numpy(), np.float64)
    finally:
        connection.close()
