"""Two policies on the same tasks: who solved which, and where the two first did something else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from flywheel.datasets.lake.reader import Readable
from flywheel.datasets.lake.reading import check_condition, quoted
from flywheel.errors import LakeError
from flywheel.trajectory import Step, Trajectory


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step at which two runs of one task differ; None where a run had ended."""

    index: int
    first: dict[str, Any] | None
    second: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A task that both played: their trajectories, and whether each solved it (verified, or else by its own claim)."""

    task_id: str
    instruction: str
    first_id: str
    second_id: str
    first_solved: bool | None
    second_solved: bool | None
    first_steps: int
    second_steps: int

    @property
    def result(self) -> str:
        """Who solved it: won (the first alone), lost, both, neither, or unknown."""
        if self.first_solved is None or self.second_solved is None:
            return "unknown"
        names = {(True, True): "both", (True, False): "won", (False, True): "lost", (False, False): "neither"}
        return names[self.first_solved, self.second_solved]


def compare(lake: Readable, first: str, second: str, condition: str = "true") -> list[Pair]:
    """The tasks that two policies both played, each by its newest attempt of a purpose; broken runs apart.

    Raises `LakeError` where they share none, and `QueryError` for a condition that is none.
    """
    check_condition(condition)
    rows = lake.sql(
        f"""with played as (
              select policy_id, task_id, purpose, arg_max({{'id': trajectory_id, 'length': length,
                         'instruction': instruction, 'solved': coalesce(verified = 1, success)}}, attempt) as run
              from trajectories
              where policy_id in ({quoted(first)}, {quoted(second)}) and stop_reason <> 'infrastructure'
                and ({condition}
) group by all)
            select a.task_id, a.run as first, b.run as second from played a join played b using (task_id, purpose)
            where a.policy_id = {quoted(first)} and b.policy_id = {quoted(second)} order by a.task_id, purpose"""
    ).to_pylist()
    if not rows:
        raise LakeError(
            f"{first} and {second} played no task in common; see: "
            'flywheel sql "select policy_id, split, count(*) from trajectories group by all"'
        )
    return [
        Pair(
            row["task_id"],
            row["first"]["instruction"],
            row["first"]["id"],
            row["second"]["id"],
            row["first"]["solved"],
            row["second"]["solved"],
            row["first"]["length"],
            row["second"]["length"],
        )
        for row in rows
    ]


def divergence(lake: Readable, pair: Pair) -> Divergence | None:
    """Where two runs part, each with what it saw; None where they are the same."""
    first, second = lake.trajectories([pair.first_id, pair.second_id])
    return first_difference(first, second)


def first_difference(first: Trajectory, second: Trajectory) -> Divergence | None:
    for index, (ours, theirs) in enumerate(zip_longest(first.steps, second.steps)):
        if ours is None or theirs is None or ours.action != theirs.action:
            return Divergence(index, _context(ours), _context(theirs))
    return None


def _context(step: Step | None) -> dict[str, Any] | None:
    """What a policy saw and did at a step."""
    names = ("observation", "feedback", "subgoal", "thought", "action")
    return None if step is None else {name: getattr(step, name) for name in names}
