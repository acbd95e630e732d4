"""Evaluation: play held-out tasks, verify them like any other episode, and read P(verified) from the lake by SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert

from flywheel.agents.policy import Policy
from flywheel.collect.play_parallel import play_parallel
from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import EVALUATION
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.environments.catalog import open_configured
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, FlywheelError
from flywheel.evaluation.statistics import rate as rate_of
from flywheel.filters.curate import curate
from flywheel.policies.factory import make_policy
from flywheel.policies.registry import champion
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import INFRASTRUCTURE_RETRIES, NO_HOOKS, RETRY_STRIDE
from flywheel.rollouts.tasks import task_source
from flywheel.trajectory import Split, StopReason, Task, digest


@dataclass(frozen=True, slots=True)
class Rate:
    """P(verified) of one policy on one set of tasks, with a 95 % Wilson interval. Broken episodes are left out."""

    policy: str
    policy_id: str
    iteration: int
    split: str
    tasks: int
    verified: int
    rate: float
    low: float
    high: float
    mean_score: float
    broken: int


def held_out_tasks(config: Config, world: World, split: Split, iteration: int) -> tuple[Task, ...]:
    """The test tasks are the same for ever. Each iteration's gate gets dev tasks that no gate has seen before, as far
    as a list of tasks goes."""
    tasks, settings = task_source(config, world), config.evaluate
    if split is Split.TEST:
        return tasks.held_out(split, settings.test_start, settings.test_tasks)
    count = settings.dev_tasks
    if tasks.listed is not None:
        return tasks.held_out(split, (iteration - 1) * count, count, config.curate.calibration_start)
    if iteration * count > config.curate.calibration_start:
        raise ConfigError(
            f"the gate of iteration {iteration} would draw the dev tasks of calibration; raise curate.calibration_start"
        )
    return tasks.draw(split, (iteration - 1) * count, count)


def evaluate(
    config: Config,
    lake: Lake,
    name: str,
    split: Split,
    iteration: int,
    progress: Callable[[int], None] = lambda done: None,
    some: Sequence[Task] | None = None,
) -> Rate:
    """Play and verify one policy on the held-out tasks of a split, or on `some` of them; what the lake holds is not
    played again."""
    with open_configured(config) as world:
        policy = make_policy(config, lake, world, name)
        tasks = held_out_tasks(config, world, split, iteration) if some is None else tuple(some)
        origin = Origin(iteration, "evaluate", config.identity(), champion(lake))
        play_parallel(config, lake, world, policy, [Job(task) for task in tasks], origin, progress, NO_HOOKS)
    curate(config, lake)
    rate = _rate(policy, split, iteration, tasks, outcomes(lake, policy.policy_id, tasks))
    _record(lake, rate, digest("evaluation", policy.policy_id, policy.version, [task.task_id for task in tasks]))
    return rate


def _record(lake: Lake, rate: Rate, evaluation_id: str) -> None:
    """Keep the newest count of the same policy on the same tasks: revocations and late verdicts change it."""
    row = {**asdict(rate), "evaluation_id": evaluation_id, "snapshot": lake.snapshot(), "created_at": lake.now()}
    with lake.catalog.write() as connection:
        connection.execute(delete(EVALUATION).where(EVALUATION.c.evaluation_id == evaluation_id))
        connection.execute(insert(EVALUATION).values(**row))


def outcomes(lake: Lake, policy_id: str, tasks: Sequence[Task]) -> dict[str, tuple[bool, float]]:
    """Task id → (verified, score) of a policy's evaluation episodes that were ordered and played here. Broken and
    uncurated ones are left out."""
    ordered = ", ".join(str(RETRY_STRIDE * retry) for retry in range(1 + INFRASTRUCTURE_RETRIES))
    rows = lake.sql(
        f"""select task_id, unnest(arg_max({{'verified': verified, 'score': coalesce(score, 0.0)}}, attempt))
            from trajectories
            where ours and purpose = 'evaluate' and policy_id = {quoted(policy_id)} and verified is not null
              and attempt in ({ordered}) and stop_reason <> '{StopReason.INFRASTRUCTURE}'
            group by task_id"""
    ).to_pylist()
    by_task = {row["task_id"]: (bool(row["verified"]), float(row["score"])) for row in rows}
    return {task.task_id: by_task[task.task_id] for task in tasks if task.task_id in by_task}


def _rate(
    policy: Policy, split: Split, iteration: int, tasks: Sequence[Task], by_task: Mapping[str, tuple[bool, float]]
) -> Rate:
    if not by_task:
        raise FlywheelError(
            f"every evaluation episode of {policy.name} broke; see: "
            'flywheel sql "select distinct error from trajectories"'
        )
    verified = sum(outcome for outcome, _ in by_task.values())
    interval = rate_of(verified, len(by_task))
    return Rate(
        policy=policy.name,
        policy_id=policy.policy_id,
        iteration=iteration,
        split=str(split),
        tasks=len(by_task),
        verified=verified,
        rate=interval.value,
        low=interval.low,
        high=interval.high,
        mean_score=sum(score for _, score in by_task.values()) / len(by_task),
        broken=len(tasks) - len(by_task),
    )
