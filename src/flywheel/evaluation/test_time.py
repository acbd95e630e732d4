"""Test-time scaling: what an auditor, more attempts or more steps gain on held-out tasks, and what they cost.

Each is measured against the plain evaluation of the same policy on the same tasks, pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from flywheel.agents.policy import Policy
from flywheel.collect.play_parallel import play_parallel
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.environments.catalog import open_configured
from flywheel.errors import ConfigError, FlywheelError
from flywheel.evaluation.best_of_n import KNOWING, VALUE, chooser
from flywheel.evaluation.evaluate import evaluate, held_out_tasks
from flywheel.evaluation.learned_auditor import ValueAuditor, value_auditor
from flywheel.evaluation.statistics import Interval, clustered_mean, rate
from flywheel.filters.curate import curate
from flywheel.filters.verifiers.catalog import VERIFIERS
from flywheel.policies.factory import CHAMPION_NAME, NAMES, make_policy
from flywheel.policies.registry import champion, policy_directory, registered
from flywheel.policies.students import load_policy
from flywheel.rollouts.auditor import ChatAuditor
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import NO_HOOKS, RETRY_STRIDE, RolloutHooks
from flywheel.runtime.devices import pick_device
from flywheel.trajectory import Split, StopReason, Task

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What playing took, per task; None where it is not known of every episode."""

    steps: float
    tokens: float | None
    seconds: float
    money: float | None


@dataclass(frozen=True, slots=True)
class Played:
    """One attempt at a task, played to its end and verified."""

    trajectory_id: str
    verified: bool


@dataclass(frozen=True, slots=True)
class Gain:
    """P(verified) without and with something, on the tasks that broke for neither; `gain` is the paired difference."""

    what: str
    policy_id: str
    split: str
    tasks: int
    plain: Interval
    scaled: Interval
    gain: Interval
    plain_cost: Cost
    scaled_cost: Cost
    notes: Mapping[str, float]

    @property
    def cost_ratio(self) -> float:
        """Tokens with over tokens without, or steps where tokens are not counted."""
        with_it, without = self.scaled_cost, self.plain_cost
        if with_it.tokens is not None and without.tokens:
            return with_it.tokens / without.tokens
        return with_it.steps / without.steps

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "cost_ratio": self.cost_ratio}


def audited(
    config: Config,
    lake: Lake,
    name: str,
    split: Split,
    iteration: int,
    by: str,
    progress: Progress = lambda done: None,
) -> Gain:
    """Let an auditor look at whatever the policy calls done: `chat`, the model of the config; or `value`, a head on the
    student's own model, or on the champion's where the policy is no student."""
    if by == "chat" and (problem := config.unpriced("auditor", config.auditor)):
        raise ConfigError(problem)
    auditor = ChatAuditor(config.auditor) if by == "chat" else _value_auditor(config, lake, name, progress)
    purpose = f"evaluate+auditor {auditor.identity[:8]}"
    hooks = RolloutHooks(auditor)
    gain = _measured(config, lake, name, split, iteration, f"auditor: {by}", purpose, progress, hooks)
    refused = lake.sql(
        f"""select count(*) as n from steps join trajectories using (trajectory_id)
            where audit <> '' and purpose = {quoted(purpose)} and trajectories.policy_id = {quoted(gain.policy_id)}"""
    ).to_pylist()[0]["n"]
    rulings = auditor.record
    counts = (
        {"rulings of this run": rulings.rulings, "of them unreadable": rulings.unreadable} if rulings.rulings else {}
    )
    trusted = auditor.notes if isinstance(auditor, ValueAuditor) else {}
    return replace(gain, notes={"steps after a refusal": refused, **counts, **trusted})


def _value_auditor(config: Config, lake: Lake, name: str, progress: Progress) -> ValueAuditor:
    folder = policy_directory(lake, _student(lake, champion(lake) if name in NAMES else name))
    with open_configured(config) as world:
        student = load_policy(folder, pick_device(config.train.device))
        return value_auditor(config, lake, world, folder, student, progress)


def _student(lake: Lake, name: str) -> str:
    """A student's whole id. Raises `PolicyError` for what is none."""
    return str(registered(lake, champion(lake) if name == CHAMPION_NAME else name).policy_id)


def longer(
    config: Config,
    lake: Lake,
    name: str,
    split: Split,
    iteration: int,
    max_steps: int,
    progress: Progress = lambda done: None,
) -> Gain:
    """Give the policy another budget of steps."""
    environment = config.environment.model_copy(update={"max_steps": max_steps})
    wide = config.model_copy(update={"environment": environment})
    purpose = f"evaluate+steps {max_steps}"
    return _measured(
        config, lake, name, split, iteration, f"{max_steps} steps", purpose, progress, NO_HOOKS, playing=wide
    )


def best_of(
    config: Config,
    lake: Lake,
    name: str,
    split: Split,
    iteration: int,
    attempts: int,
    by: str,
    temperature: float,
    progress: Progress = lambda done: None,
) -> Gain:
    """Let a student play each task several times at a temperature, and keep the attempt that a verifier or its own
    value head thinks most of. A verifier that knows the solution tells what the best choice could be."""
    if by != VALUE and by not in VERIFIERS:
        raise ConfigError(f"there is no verifier '{by}'; use {VALUE}, or one of: {', '.join(VERIFIERS)}")
    folder = policy_directory(lake, _student(lake, name))
    plain = evaluate(config, lake, name, split, iteration, progress)
    with open_configured(config) as world:
        tasks = held_out_tasks(config, world, split, iteration)
        student = load_policy(folder, pick_device(config.train.device), temperature=temperature)
        origin = Origin(iteration, "evaluate+best", config.identity(), champion(lake))
        jobs = [Job(task, attempt) for task in tasks for attempt in range(attempts)]
        play_parallel(config, lake, world, student, jobs, origin, progress, NO_HOOKS)
        judge = chooser(config, lake, world, folder, student, by, progress)
        curate(config, lake)
        played = _played(lake, student, origin.purpose, tasks, attempts)
        worth = judge.worth(lake, [trajectory.trajectory_id for episodes in played.values() for trajectory in episodes])
    chosen = {
        task: max(episodes, key=lambda trajectory: worth.get(trajectory.trajectory_id, -np.inf))
        for task, episodes in played.items()
    }
    notes = {
        "any attempt": float(np.mean([any(episode.verified for episode in episodes) for episodes in played.values()])),
        "one attempt": float(np.mean([episode.verified for episodes in played.values() for episode in episodes])),
        **judge.notes,
    }
    what = f"best of {attempts} by {by}" + (", which may know the solution" if by in KNOWING else "")
    ours = {task: episode.verified for task, episode in chosen.items()}
    return _gain(lake, what, plain.policy_id, split, tasks, ours, played, notes)


def _measured(
    config: Config,
    lake: Lake,
    name: str,
    split: Split,
    iteration: int,
    what: str,
    purpose: str,
    progress: Progress,
    hooks: RolloutHooks,
    playing: Config | None = None,
) -> Gain:
    evaluate(config, lake, name, split, iteration, progress)
    with open_configured(config) as world:
        tasks = held_out_tasks(config, world, split, iteration)
        policy = make_policy(config, lake, world, name)
        origin = Origin(iteration, purpose, config.identity(), champion(lake))
        play_parallel(playing or config, lake, world, policy, [Job(task) for task in tasks], origin, progress, hooks)
    curate(config, lake)
    played = _played(lake, policy, purpose, tasks, 1)
    ours = {task: episodes[0].verified for task, episodes in played.items()}
    return _gain(lake, what, policy.policy_id, split, tasks, ours, played, {})


def _played(lake: Lake, policy: Policy, purpose: str, tasks: Sequence[Task], attempts: int) -> dict[str, list[Played]]:
    """Task → its attempts, in order, each in its newest try. What broke is left out."""
    rows = lake.sql(
        f"""select task_id, attempt % {RETRY_STRIDE} as number, arg_max(trajectory_id, attempt) as one,
                   arg_max(verified, attempt) as verified
            from trajectories where ours and purpose = {quoted(purpose)} and policy_id = {quoted(policy.policy_id)}
              and policy_version = {quoted(policy.version)} and verified is not null
              and stop_reason <> '{StopReason.INFRASTRUCTURE}'
              and task_id in ({_listed([task.task_id for task in tasks])})
            group by all having number < {attempts} order by all"""
    ).to_pylist()
    played: dict[str, list[Played]] = {}
    for row in rows:
        played.setdefault(row["task_id"], []).append(Played(row["one"], bool(row["verified"])))
    return played


def _gain(
    lake: Lake,
    what: str,
    policy_id: str,
    split: Split,
    tasks: Sequence[Task],
    ours: Mapping[str, bool],
    played: Mapping[str, Sequence[Played]],
    notes: Mapping[str, float],
) -> Gain:
    plain = {
        row["task_id"]: (row["one"], bool(row["verified"]))
        for row in lake.sql(
            f"""select task_id, arg_max(trajectory_id, attempt) as one, arg_max(verified, attempt) as verified
                from trajectories where ours and purpose = 'evaluate' and policy_id = {quoted(policy_id)}
                  and verified is not null and stop_reason <> '{StopReason.INFRASTRUCTURE}' group by task_id"""
        ).to_pylist()
    }
    shared = [task for task in tasks if task.task_id in plain and task.task_id in ours]
    if not shared:
        raise FlywheelError('every episode broke; see: flywheel sql "select distinct error from trajectories"')
    before = [plain[task.task_id][1] for task in shared]
    after = [ours[task.task_id] for task in shared]
    return Gain(
        what=what,
        policy_id=policy_id,
        split=str(split),
        tasks=len(shared),
        plain=rate(sum(before), len(shared)),
        scaled=rate(sum(after), len(shared)),
        gain=clustered_mean(np.subtract(after, before, dtype=float), [task.group for task in shared]),
        plain_cost=_cost(lake, [plain[task.task_id][0] for task in shared], len(shared)),
        scaled_cost=_cost(
            lake, [trajectory.trajectory_id for task in shared for trajectory in played[task.task_id]], len(shared)
        ),
        notes=notes,
    )


def _cost(lake: Lake, ids: Sequence[str], tasks: int) -> Cost:
    """What some trajectories took, per task; an auditor's rulings stand among their decisions."""
    row = lake.sql(
        f"""select sum(length) as steps, sum(s.seconds) as seconds,
                   case when bool_and(tokens is not null) then sum(tokens) end as tokens,
                   case when bool_and(cost is not null) then sum(cost) end as money
            from trajectories left join (select trajectory_id, sum(seconds) as seconds from steps group by all) s
              using (trajectory_id) where trajectory_id in ({_listed(ids)})"""
    ).to_pylist()[0]
    return Cost(
        steps=float(row["steps"] or 0) / tasks,
        tokens=None if row["tokens"] is None else float(row["tokens"]) / tasks,
        seconds=float(row["seconds"] or 0) / tasks,
        money=None if row["money"] is None else float(row["money"]) / tasks,
    )


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(map(quoted, ids)) or "''"
