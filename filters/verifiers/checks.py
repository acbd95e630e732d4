"""Consistency checks of records that need no replay, each vectorised over trajectories.

They catch claims that contradict the record itself. What is consistent and false is left to `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow.compute as pc

from flywheel.datasets.lake.provenance import IMPORTED
from flywheel.environments.privileged import CANARY
from flywheel.filters.batch import Bools, Floats, TrajectoryBatch
from flywheel.trajectory import BUDGET_STOPS, StopReason, TrajectoryOrigin, trajectory_id

Check = Callable[[TrajectoryBatch], Bools]
"""batch → (N,): does it hold?"""
TOLERANCE = 1e-6
CHECKER = (
    r"(?i)\b(?:checker|grader|scorer|verifier|reward[_ ](?:function|model|file)|answer[_ ]key"
    r"|gold[_ ](?:actions?|answers?)|expected[_ ](?:output|answer)|hidden[_ ]tests?)\b"
)
"""Words that name what judges an agent, in an action: agents have no business there."""


def numbered(batch: TrajectoryBatch) -> Bools:
    """Steps are numbered 0, 1, … and are as many as the record says."""
    places = np.arange(batch.steps.num_rows) - batch.starts_N1[batch.owner_T]
    complete: Bools = batch.numbers("length") == batch.lengths_N
    return batch.all_of(batch.step_numbers("index") == places) & complete


def ends_once(batch: TrajectoryBatch) -> Bools:
    """Nothing follows the end."""
    over = (batch.step_numbers("terminated") > 0) | (batch.step_numbers("truncated") > 0)
    return batch.all_of(~over | batch.last_T)


def claim_agrees(batch: TrajectoryBatch) -> Bools:
    """Success, stop reason and the end of the last step say the same."""
    success = batch.numbers("success") > 0
    stopped = np.asarray(batch.texts("stop_reason"))
    ended = batch.sum_of((batch.step_numbers("terminated") > 0) & batch.last_T) > 0
    solved = success == (stopped == StopReason.SUCCESS)
    over = ended == np.isin(stopped, [StopReason.SUCCESS, StopReason.FAILURE])
    holds: Bools = (solved & over) | (stopped == StopReason.UNKNOWN)
    return holds


def success_is_progress(batch: TrajectoryBatch) -> Bools:
    """A success has full progress, an unsolved task has not, and the score is the last progress.

    Episodes of other tools' worlds carry scores of their own.
    """
    last = batch.sum_of(np.where(batch.last_T, batch.step_numbers("progress"), 0.0))
    score, success = batch.numbers("score"), batch.numbers("success") > 0
    holds: Bools = (np.abs(score - last) <= TOLERANCE) & (success == (score >= 1 - TOLERANCE))
    others = [
        origin == TrajectoryOrigin.RECORDED or name.startswith(f"{IMPORTED}/")
        for origin, name in zip(batch.texts("origin"), batch.texts("environment"), strict=True)
    ]
    return holds | np.array(others, np.bool_)


def limits_end_no_success(batch: TrajectoryBatch) -> Bools:
    """Only a last step is truncated, under a limit, and not in a success: what was cut off did not end of itself."""
    truncated = batch.step_numbers("truncated") > 0
    stopped = np.asarray(batch.texts("stop_reason"))
    limited = np.isin(stopped, [*BUDGET_STOPS, StopReason.UNKNOWN]) & ~(batch.numbers("success") > 0)
    alone = batch.all_of(~truncated | (batch.last_T & (batch.step_numbers("terminated") == 0)))
    holds: Bools = alone & (limited | (batch.sum_of(truncated) == 0))
    return holds


def numbers_are_possible(batch: TrajectoryBatch) -> Bools:
    """Counts, costs and times are not negative, scores and progress lie in [0, 1], and all are finite."""
    holds = np.ones(len(batch), np.bool_)
    for column in ("tokens", "cost", "iteration", "attempt", "started_at", "score"):
        holds &= _possible(batch.numbers(column), 1 + TOLERANCE if column == "score" else np.inf)
    for column in ("prompt_tokens", "completion_tokens", "seconds", "cost", "progress"):
        holds &= batch.all_of(_possible(batch.step_numbers(column), 1 + TOLERANCE if column == "progress" else np.inf))
    return holds


def _possible(values: Floats, most: float) -> Bools:
    """Is it finite, from 0 to `most`? Absent numbers of older records are."""
    return np.isnan(values) | (np.isfinite(values) & (values >= 0) & (values <= most))


def rewards_sum(batch: TrajectoryBatch) -> Bools:
    """Rewards are finite and sum to the total, where they are told."""
    rewards, total = batch.step_numbers("reward"), batch.numbers("total_reward")
    sums = batch.sum_of(rewards)
    same = np.isfinite(sums) & np.isfinite(total) & (np.abs(sums - total) <= TOLERANCE * (1 + np.abs(total)))
    return same | (np.isnan(total) & batch.all_of(np.isnan(rewards)))


def rewards_need_change(batch: TrajectoryBatch) -> Bools:
    """No reward, and no rise of progress, where state and progress stayed as they were."""
    progress = batch.step_numbers("progress")
    before = np.where(batch.first_T, 0.0, np.roll(progress, 1))
    still = (batch.state_T == batch.next_state_T) & ~(batch.last_T & (batch.step_numbers("terminated") > 0))
    gained = (batch.step_numbers("reward") > TOLERANCE) | (progress - before > TOLERANCE)
    return batch.all_of(~(still & gained))


def rewards_need_deeds(batch: TrajectoryBatch) -> Bools:
    """Only actions that were on offer are rewarded."""
    return batch.all_of(batch.on_offer_T | (batch.step_numbers("reward") <= TOLERANCE))


def rewarded_once(batch: TrajectoryBatch) -> Bools:
    """No action is rewarded twice in one state: that is a loop that farms progress."""
    paid = np.flatnonzero(batch.step_numbers("reward") > TOLERANCE)
    deeds = np.stack([batch.owner_T[paid], batch.state_T[paid], batch.action_T[paid]], axis=1)
    _, first = np.unique(deeds, axis=0, return_index=True)
    repeated = np.ones(len(paid), np.bool_)
    repeated[first] = False
    mask = np.zeros(batch.steps.num_rows, np.bool_)
    mask[paid[repeated]] = True
    return batch.all_of(~mask)


def task_is_itself(batch: TrajectoryBatch) -> Bools:
    """Task id and group follow from the task."""
    named = zip(batch.tasks, batch.texts("task_id"), batch.texts("task_group"), strict=True)
    same = [task.task_id == task_id and task.group == group for task, task_id, group in named]
    return np.array(same, np.bool_)


def episode_is_itself(batch: TrajectoryBatch) -> Bools:
    """The trajectory's id follows from task, policy, purpose and attempt; a copy under a new id does not. An import's
    follows from its document."""
    columns = ["trajectory_id", "policy_id", "policy_version", "purpose", "attempt"]
    rows = batch.trajectories.select(columns).to_pylist()
    same = [row.pop("trajectory_id") == trajectory_id(task, **row) for task, row in zip(batch.tasks, rows, strict=True)]
    imported = [origin == TrajectoryOrigin.IMPORTED for origin in batch.texts("origin")]
    return np.array(imported, np.bool_) | np.array(same, np.bool_)


def checker_untouched(batch: TrajectoryBatch, words: str = CHECKER) -> Bools:
    """No action names what judges the agent, by a regular expression (RE2)."""
    matches = pc.match_substring_regex(batch.step_texts("action"), words)
    return batch.all_of(~matches.to_numpy(zero_copy_only=False))


def facts_stay_hidden(batch: TrajectoryBatch) -> Bools:
    """The mark that lies in privileged facts, and nowhere else, stands in none of the agent's words."""
    holds = np.ones(len(batch), np.bool_)
    for column in ("action", "thought", "subgoal"):
        matches = pc.match_substring(batch.step_texts(column), CANARY)
        holds &= batch.all_of(~matches.to_numpy(zero_copy_only=False))
    return holds


UNTOUCHED = "what judges the agent is untouched"
CLAIMS: Mapping[str, Check] = {
    "success, stop reason and end agree": claim_agrees,
    "success is full progress": success_is_progress,
    "rewards sum to the total": rewards_sum,
    "only actions on offer are rewarded": rewards_need_deeds,
}
"""What a claim of success must not contradict."""
CHECKS: Mapping[str, Check] = {
    **CLAIMS,
    "steps are numbered without gaps": numbered,
    "limits end no success": limits_end_no_success,
    "numbers are possible": numbers_are_possible,
    "nothing follows the end": ends_once,
    "rewards come with a change": rewards_need_change,
    "no deed is rewarded twice in one state": rewarded_once,
    "the task is what its id says": task_is_itself,
    "the episode is what its id says": episode_is_itself,
    UNTOUCHED: checker_untouched,
    "privileged facts stay hidden": facts_stay_hidden,
}
"""All that `integrity` looks at."""
