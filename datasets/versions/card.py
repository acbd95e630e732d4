"""The card of a dataset: what is in it, how long, from whom, and how it is biased."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyarrow as pa

from flywheel.datasets.lake.lake import Lake
from flywheel.text import markdown

HORIZONS = (0, 10, 20, 50, 100, 200, 500)
LICENSE = "other"


def dataset_card(lake: Lake, name: str, snapshot: int, condition: str, ids: Sequence[str]) -> str:
    """Markdown with the front matter that Hugging Face reads. The same version has the same card."""
    connection = lake.connect(snapshot)
    try:
        connection.register("wanted", pa.table({"trajectory_id": list(ids)}))
        connection.execute("create temp view mine as select * from trajectories semi join wanted using (trajectory_id)")

        def table(title: str, key: str) -> str:
            rows = connection.sql(
                f"""select {key}, count(*), avg(verified), median(length), max(length) from mine
                    group by all order by 1"""
            ).fetchall()
            lines = [f"| {title} | trajectories | verified | median steps | longest |", "| --- " * 5 + "|"]
            lines += [
                f"| {markdown(str(key))} | {n} | {_share(share)} | {median:g} | {top} |"
                for key, n, share, median, top in rows
            ]
            return "\n".join(lines)

        bounds = " ".join(f"when length < {bound} then '{low:03}–{bound:03}'" for low, bound in _pairs())
        horizon = table("steps", f"case {bounds} else '{HORIZONS[-1]}–' end")
        sources, splits = table("policy", "policy"), table("split", "split")
        environments = table("environment", "environment")
        biases = _biases(
            connection.sql(
                """select avg(verified), median(length) filter (verified = 1), median(length) filter (verified = 0),
                      count(distinct task_group) / count(*), count(*) filter (verified is null) from mine"""
            ).fetchall()[0]
        )
    finally:
        connection.close()
    return f"""---
license: {LICENSE}
configs:
- config_name: trajectories
  data_files: trajectories/*.parquet
- config_name: steps
  data_files: steps/*.parquet
---
# {name}

{len(ids)} trajectories of snapshot {snapshot}, selected by `{condition}`.

## Environments
{environments}

## Sources
{sources}

## Splits
{splits}

## Horizon
{horizon}

## Licence
Trajectories carry the licence of their environment and the terms of the models that played them; check both before
you pass them on.

## Known biases
{biases}
"""


def _pairs() -> list[tuple[int, int]]:
    return list(itertools.pairwise(HORIZONS))


def _share(value: float | None) -> str:
    return "not curated" if value is None else f"{value:.0%}"


def _biases(row: tuple[float | None, ...]) -> str:
    verified, long, short, groups, uncurated = row
    lines = []
    if verified == 1:
        lines.append("- Successes only: what cannot be achieved, and how failures look, is not in it.")
    if long is not None and short is not None and long != short:
        lines.append(f"- Verified episodes have a median of {long:g} steps, the others {short:g}.")
    if groups is not None and groups < 1:
        lines.append(f"- Tasks repeat: {groups:.0%} as many task groups as trajectories.")
    if uncurated:
        lines.append(f"- {uncurated} trajectories have not been curated.")
    return "\n".join(lines) or "- None that these counts show."
