"""One trajectory as a person reads it: what the agent saw, thought and did, and what is known of it since."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flywheel.datasets.lake.reader import Readable
from flywheel.datasets.lake.reading import quoted
from flywheel.errors import LakeError
from flywheel.trajectory import Trajectory

FACTS = (
    "trajectory_id",
    "policy",
    "policy_id",
    "task_id",
    "iteration",
    "purpose",
    "stop_reason",
    "success",
    "score",
    "total_reward",
    "length",
    "tokens",
    "cost",
    "error",
    "parent_trajectory_id",
    "verified",
    "route",
    "route_reason",
    "instruction",
    "system",
    "tools",
)
"""What is told of a trajectory."""
SHOWN = (
    "index",
    "observation",
    "feedback",
    "document",
    "location",
    "thought",
    "action",
    "teacher_action",
    "audit",
    "reward",
    "progress",
    "trainable",
    "policy_id",
    "prompt_tokens",
    "completion_tokens",
    "seconds",
    "screenshot",
)
"""What is told of a step as it stands in the lake."""


def describe_trajectory(lake: Readable, prefix: str) -> dict[str, Any]:
    """Facts, steps with subgoals, calls and credit, and verdicts of a trajectory by the beginning of its id, or by the
    name of a recorded session.

    Raises `LakeError` where none or several do.
    """
    (facts,) = lake.sql(
        f"select {', '.join(FACTS)} from trajectories where trajectory_id = {quoted(whole_id(lake, prefix))}"
    ).to_pylist()
    (trajectory,) = lake.trajectories([facts["trajectory_id"]])
    return {
        **facts,
        "steps": _steps(lake, trajectory),
        "final_observation": trajectory.final_observation,
        "verdicts": _verdicts(lake, trajectory.trajectory_id),
    }


def whole_id(lake: Readable, prefix: str) -> str:
    """The id of the one trajectory whose id begins so, or of the recorded session of that name.

    Raises `LakeError` where none or several do.
    """
    safe = "".join(letter for letter in prefix if letter.isalnum() or letter in "-_.")
    named = f"task_name = {quoted(safe)} and purpose = 'recorded' and parent_trajectory_id is null"
    matches = lake.sql(
        f"select trajectory_id from trajectories where starts_with(trajectory_id, {quoted(safe)}) or ({named})"
    )["trajectory_id"].to_pylist()
    matches = [match for match in matches if match == safe] or matches
    if not safe or len(matches) != 1:
        problem = f"{len(matches)} trajectories begin with" if safe and matches else "no trajectory"
        raise LakeError(
            f"{problem} '{prefix}' in {lake.name}; "
            'list some with: flywheel sql "select trajectory_id from trajectories limit 5"'
        )
    return str(matches[0])


def _steps(lake: Readable, trajectory: Trajectory) -> list[dict[str, Any]]:
    mine = f"trajectory_id = {quoted(trajectory.trajectory_id)}"
    segments = lake.sql(f'select start, "end", subgoal from segments where {mine} order by start').to_pylist()
    credit: dict[int, dict[str, float]] = {}
    for row in lake.sql(f'select "index", level, method, advantage from credits where {mine} order by all').to_pylist():
        credit.setdefault(row["index"], {})[f"{row['method']} {row['level']}"] = row["advantage"]
    results = {
        (call.pop("index"), call.pop("position")): call
        for call in lake.sql(f'select "index", position, result, error from tool_calls where {mine}').to_pylist()
    }
    described = []
    for step in trajectory.steps:
        cut = next((row["subgoal"] for row in segments if row["start"] <= step.index < row["end"]), "")
        calls = step.output.tool_calls if step.output else ()
        described.append(
            {
                **{name: getattr(step, name) for name in SHOWN},
                "subgoal": step.subgoal or cut,
                "tool_calls": [{**asdict(call), **results[step.index, place]} for place, call in enumerate(calls)],
                "credit": credit.get(step.index, {}),
            }
        )
    return described


def _verdicts(lake: Readable, trajectory_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = lake.sql(
        f"""select verifier, passed, completion, integrity, items from verdicts
            where trajectory_id = {quoted(trajectory_id)} order by verifier, created_at"""
    ).to_pylist()
    return rows
