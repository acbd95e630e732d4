"""One trajectory rendered for a terminal."""

from __future__ import annotations

from typing import Any

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import LakeError


def describe_trajectory(lake: Lake, prefix: str) -> dict[str, Any]:
    """Facts, steps with the grounded subgoals, and verdicts of the trajectory whose id begins with `prefix`."""
    safe = "".join(letter for letter in prefix if letter.isalnum())
    matches = lake.sql(
        f"""select trajectory_id, policy, policy_id, task_id, iteration, purpose, stop_reason, success, score, length,
                   verified, route, route_reason
            from trajectories where starts_with(trajectory_id, '{safe}')"""
    ).to_pylist()
    if not safe or len(matches) != 1:
        problem = f"{len(matches)} trajectories begin with" if safe and matches else "no trajectory"
        raise LakeError(
            f"{problem} '{prefix}' in {lake.name}; "
            'list some with: flywheel sql "select trajectory_id from trajectories limit 5"'
        )
    trajectory_id = matches[0]["trajectory_id"]
    steps = lake.sql(
        f"""select s.index, coalesce(nullif(s.subgoal, ''), g.subgoal, '') as subgoal, s.action, s.progress
            from steps s left join segments g
              on g.trajectory_id = s.trajectory_id and s.index >= g.start and s.index < g."end"
            where s.trajectory_id = '{trajectory_id}' order by s.index"""
    ).to_pylist()
    verdicts = lake.sql(
        f"""select verifier, passed, completion, integrity,
                   coalesce(flaw.name || ': ' || flaw.evidence, '') as why
            from (select *, list_filter(items, lambda item: item.fraction < 1)[1] as flaw from verdicts
                  where trajectory_id = '{trajectory_id}')
            order by verifier, created_at"""
    ).to_pylist()
    return {**matches[0], "steps": steps, "verdicts": verdicts}
