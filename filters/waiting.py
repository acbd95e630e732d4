"""What waits for curation, what may not teach, and what was reported since it was curated."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.datasets.lake.splits import conflicts
from flywheel.environments.catalog import canonical
from flywheel.errors import ContaminationError
from flywheel.text import printable
from flywheel.trajectory import TASK_COLUMNS, StopReason, Task, task_of

log = logging.getLogger(__name__)

CHUNK_STEPS = 8192
CHUNK = 512
"""A chunk ends at whichever comes first, steps or trajectories."""
_UNREPORTED = "origin = 'recorded' and success is null and score is null"
"""A recorded run of which nobody said yet how it ended."""


def waiting(lake: Lake, config: Config) -> list[list[str]]:
    """Ids of the environment's trajectories that are not routed yet, in chunks that lie together; broken ones apart."""
    chunks: list[list[str]] = []
    steps = 0
    lengths = dict(unrouted(lake, config, f"stop_reason <> '{StopReason.INFRASTRUCTURE}'"))
    for trajectory_id in lake.by_commit(list(lengths)):
        if not chunks or steps + lengths[trajectory_id] > CHUNK_STEPS or len(chunks[-1]) == CHUNK:
            chunks.append([])
            steps = 0
        chunks[-1].append(trajectory_id)
        steps += lengths[trajectory_id]
    return chunks


def unrouted(lake: Lake, config: Config, condition: str) -> list[tuple[str, int]]:
    """(id, length) of the environment's trajectories that are not routed yet. Where outcomes decide, recorded runs wait
    for theirs: unknown is no failure."""
    reported = "true" if not awaits_outcome(config) else f"not ({_UNREPORTED})"
    table = lake.sql(
        f"""select trajectory_id, length from trajectories
            where route is null and environment = {quoted(config.environment.name)}
              and parameters = {quoted(canonical(config.environment.parameters))}
              and {condition} and {reported} order by trajectory_id"""
    )
    return list(zip(*table.to_pydict().values(), strict=True))


def awaits_outcome(config: Config) -> bool:
    """Does a verifier that gates go by the outcome alone?"""
    return any(
        verifier.gate and verifier.name == "outcome" and "field" not in verifier.arguments
        for verifier in config.curate.verifiers
    )


def reported_since(config: Config, lake: Lake) -> list[str]:
    """Curated trajectories of which something was reported since."""
    ids: list[str] = lake.sql(
        f"""select trajectory_id from trajectories
            where reported_at > routed_at and environment = {quoted(config.environment.name)} order by trajectory_id"""
    )["trajectory_id"].to_pylist()
    return ids


def check_splits(lake: Lake) -> None:
    """Refuse a lake in which a task group lies in more than one split. What an import claims decides nothing."""
    leaks = lake.sql(
        """select environment || coalesce(' task ' || any_value(task_name), ' seed ' || any_value(seed)) as task,
                  list(distinct split order by split) as splits
           from trajectories where claims is null
           group by environment, parameters, case when task_name is null then seed::varchar else task_group end
           having count(distinct split) > 1 limit 1"""
    ).to_pylist()
    if leaks:
        raise ContaminationError(f"{leaks[0]['task']} lies in {' and '.join(leaks[0]['splits'])}; drop one of them")


def unteachable(config: Config, lake: Lake, condition: str = "route is null") -> dict[str, str]:
    """Imports of more steps than an episode may have here, or that claim a split which their task does not belong to:
    id → why they may not teach."""
    rows = lake.sql(
        f"""select trajectory_id, length, {", ".join(TASK_COLUMNS)} from trajectories
            where claims is not null and {condition}"""
    ).to_pylist()
    most, tasks, problems = config.environment.max_steps, dict[str, Task](), dict[str, str]()
    for row in rows:
        tasks[row["trajectory_id"]] = task_of(row)
        if row["length"] > most:
            problems[row["trajectory_id"]] = f"{row['length']} steps, where an episode has at most {most}"
    return conflicts(lake, tasks) | problems


def warn_unverifiable(reasons: Mapping[str, str]) -> None:
    """Warn of trajectories that could not be verified: id → why."""
    if reasons:
        example, reason = next(iter(reasons.items()))
        log.warning("%d trajectories could not be verified, as %s: %s", len(reasons), example, printable(reason))
