"""Test-time scaling: what an auditor, more attempts or more steps gain on held-out tasks, and what they cost.

Each is measured against the plain evaluation of the same policy on the same tasks, pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from flywheel.agents.auditor import ChatAuditor, Spent
from flywheel.agents.collect import ALONE, Company, play
from flywheel.agents.episode import Job, Origin
from flywheel.agents.policy import Policy
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.datasets.reading import quoted
from flywheel.distill.auditing import ValueAuditor, value_auditor
from flywheel.distill.choosing import Chooser, chooser
from flywheel.distill.evaluation import evaluate, held_out_tasks
from flywheel.distill.policies import CHAMPION_NAME, NAMES, make_policy
from flywheel.distill.registry import champion, policy_directory, registered
from flywheel.distill.statistics import Interval, clustered_mean, rate
from flywheel.distill.students import load_policy
from flywheel.distill.train import pick_device
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.errors import FlywheelError
from flywheel.filters.curate import curate
from flywheel.trajectory import Split, Task, trajectory_id

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What playing took, per task."""

    steps: float
    tokens: float
    seconds: float
    money: float


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
        """Tokens with over tokens without, or steps where nobody counts tokens."""
        with_it, without = self.scaled_cost, self.plain_cost
        return with_it.tokens / without.tokens if without.tokens else with_it.steps / without.steps

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
    auditor = ChatAuditor(config.auditor) if by == "chat" else _value_auditor(config, lake, name, progress)
    purpose = f"evaluate+auditor {auditor.identity[:8]}"
    gain = _measured(config, lake, name, split, iteration, "auditor", purpose, progress, Company(auditor))
    return _with(gain, auditor.spent, auditor.notes if isinstance(auditor, ValueAuditor) else {})


def _value_auditor(config: Config, lake: Lake, name: str, progress: Progress) -> ValueAuditor:
    folder = policy_directory(lake, _student(lake, champion(lake) if name in NAMES else name))
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        student = load_policy(folder, pick_device(config.train.device))
        return value_auditor(config, lake, world, folder, student, progress)


def _student(lake: Lake, name: str) -> str:
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
    return _measured(config, lake, name, split, iteration, f"{max_steps} steps", purpose, progress, ALONE, playing=wide)


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
    value head thinks most of."""
    plain = evaluate(config, lake, name, split, iteration, progress)
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        tasks = held_out_tasks(config, world, split, iteration)
        folder = policy_directory(lake, _student(lake, name))
        student = load_policy(folder, pick_device(config.train.device), temperature=temperature)
        origin = Origin(iteration, "evaluate+best", config.identity(), champion(lake))
        jobs = [Job(task, attempt) for task in tasks for attempt in range(attempts)]
        play(config, lake, world, student, jobs, origin, progress)
        names = [
            [trajectory_id(task, student.policy_id, student.version, origin.purpose, n) for n in range(attempts)]
            for task in tasks
        ]
        judge = chooser(config, lake, world, folder, student, by, progress)
        chosen = _chosen(lake, judge, names)
    curate(config, lake)
    verified = _verified(lake, [one for own in names for one in own])
    ours = {task.task_id: verified[one] for task, one in zip(tasks, chosen, strict=True) if one in verified}
    every = [[verified[one] for one in own if one in verified] for own in names]
    notes = {
        "any attempt": float(np.mean([any(own) for own in every])),
        "one attempt": float(np.mean([won for own in every for won in own])),
        **judge.notes,
    }
    baseline = _plain(lake, plain.policy_id, tasks)
    return _gain(
        lake,
        f"best of {attempts} by {by}",
        plain.policy_id,
        split,
        tasks,
        baseline,
        ours,
        [one for own in names for one in own],
        notes,
    )


def _measured(
    config: Config,
    lake: Lake,
    name: str,
    split: Split,
    iteration: int,
    what: str,
    purpose: str,
    progress: Progress,
    company: Company,
    playing: Config | None = None,
) -> Gain:
    plain = evaluate(config, lake, name, split, iteration, progress)
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        tasks = held_out_tasks(config, world, split, iteration)
        policy = make_policy(config, lake, world, name)
        origin = Origin(iteration, purpose, config.identity(), champion(lake))
        ids = _played(playing or config, lake, world, policy, tasks, origin, progress, company)
    curate(config, lake)
    verified = _verified(lake, list(ids))
    ours = {ids[one].task_id: won for one, won in verified.items()}
    baseline = _plain(lake, plain.policy_id, tasks)
    return _gain(lake, what, policy.policy_id, split, tasks, baseline, ours, list(ids), {})


def _played(
    config: Config,
    lake: Lake,
    world: World,
    policy: Policy,
    tasks: Sequence[Task],
    origin: Origin,
    progress: Progress,
    company: Company,
) -> dict[str, Task]:
    """Trajectory → its task."""
    jobs = [Job(task) for task in tasks]
    play(config, lake, world, policy, jobs, origin, progress, company)
    return {trajectory_id(task, policy.policy_id, policy.version, origin.purpose, 0): task for task in tasks}


def _verified(lake: Lake, ids: Sequence[str]) -> dict[str, bool]:
    """Trajectory → was it verified? Broken ones are left out."""
    rows = lake.sql(
        f"""select trajectory_id, verified from trajectories where trajectory_id in ({_listed(ids)})
            and verified is not null and stop_reason <> 'infrastructure'"""
    ).to_pylist()
    return {row["trajectory_id"]: bool(row["verified"]) for row in rows}


def _plain(lake: Lake, policy_id: str, tasks: Sequence[Task]) -> dict[str, tuple[str, bool]]:
    """Task → (trajectory, verified) of the plain evaluation."""
    rows = lake.sql(
        f"""select task_id, arg_max(trajectory_id, attempt) as one, arg_max(verified, attempt) as verified
            from trajectories where purpose = 'evaluate' and policy_id = {quoted(policy_id)} and verified is not null
              and stop_reason <> 'infrastructure' and task_id in ({_listed([task.task_id for task in tasks])})
            group by task_id"""
    ).to_pylist()
    return {row["task_id"]: (row["one"], bool(row["verified"])) for row in rows}


def _chosen(lake: Lake, judge: Chooser, names: Sequence[Sequence[str]]) -> list[str]:
    """Of each task the attempt that is thought most of; the first of equals."""
    worth = judge.worth(lake, [one for own in names for one in own])
    return [max(own, key=lambda one: worth.get(one, -np.inf)) for own in names]


def _gain(
    lake: Lake,
    what: str,
    policy_id: str,
    split: Split,
    tasks: Sequence[Task],
    baseline: Mapping[str, tuple[str, bool]],
    ours: Mapping[str, bool],
    played: Sequence[str],
    notes: Mapping[str, float],
) -> Gain:
    shared = [task for task in tasks if task.task_id in baseline and task.task_id in ours]
    if not shared:
        raise FlywheelError('every episode broke; see: flywheel sql "select distinct error from trajectories"')
    before = [baseline[task.task_id][1] for task in shared]
    after = [ours[task.task_id] for task in shared]
    return Gain(
        what=what,
        policy_id=policy_id,
        split=str(split),
        tasks=len(shared),
        plain=rate(sum(before), len(shared)),
        scaled=rate(sum(after), len(shared)),
        gain=clustered_mean(np.subtract(after, before, dtype=float), [task.group for task in shared]),
        plain_cost=_cost(lake, [baseline[task.task_id][0] for task in shared], len(shared)),
        scaled_cost=_cost(lake, played, len(shared)),
        notes=notes,
    )


def _cost(lake: Lake, ids: Sequence[str], tasks: int) -> Cost:
    row = lake.sql(
        f"""select count(*) as steps, sum(prompt_tokens + completion_tokens) as tokens, sum(seconds) as seconds,
                   sum(coalesce(cost, 0)) as money from steps where trajectory_id in ({_listed(ids)})"""
    ).to_pylist()[0]
    return Cost(**{name: float(value or 0) / tasks for name, value in row.items()})


def _with(gain: Gain, spent: Spent, more_notes: Mapping[str, float]) -> Gain:
    """A gain with what its auditor took, which is part of the cost."""
    cost, tasks = gain.scaled_cost, gain.tasks
    more = Cost(cost.steps, cost.tokens + spent.tokens / tasks, cost.seconds, cost.money + spent.cost / tasks)
    notes = {"rulings": spent.rulings, "refusals": spent.refusals, "unreadable": spent.unreadable, **more_notes}
    return Gain(**{**{name: getattr(gain, name) for name in Gain.__slots__}, "scaled_cost": more, "notes": notes})


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(map(quoted, ids)) or "''"
