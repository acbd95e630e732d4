"""Does an environment keep its word? Played by whoever can: its expert, its listed actions, or words that mean nothing.

`flywheel env check` prints what holds, what does not, and what nobody could look at.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from flywheel.environments.capabilities import FindsTasks, KnowsSolutions, MakesTasks
from flywheel.environments.protocol import Environment, Observation, Transition, World
from flywheel.errors import ConfigError
from flywheel.trajectory import Split, Task

TASKS, STEPS, LISTED = 3, 12, 50
NONSENSE = 'no such action: {"tool": "?"}\n'
Step = tuple[Observation, Transition | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One promise of an environment. `ok` is None where nothing could be looked at."""

    promise: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class _Probe:
    """A world, some of its tasks, and what to do where it lists no actions and knows no solution."""

    world: World
    tasks: Sequence[Task]
    actions: Sequence[str]
    listed: Mapping[Split, Sequence[Task]] | None

    def draw(self, split: Split, count: int) -> Sequence[Task]:
        """The first tasks of a split."""
        if self.listed is not None:
            return self.listed[split][:count]
        if not isinstance(self.world, MakesTasks):
            raise ConfigError("the world has no tasks(split, start, count), and no list was given")
        return self.world.tasks(split, 0, count)


def conformance(
    world: World, actions: Sequence[str] = (), listed: Mapping[Split, Sequence[Task]] | None = None
) -> list[Check]:
    """Every check; one that raises has failed with its reason, and without tasks there is nothing more to see.

    `actions` are tried where the world lists none and knows no solution. `listed`: tasks where it makes none.
    """
    whole = "tasks of a split are as many as asked for, each once"
    first = _checked(whole, partial(_tasks, _Probe(world, (), actions, listed)))
    if not first.ok:
        return [first]
    probe = _Probe(world, _Probe(world, (), actions, listed).draw(Split.TRAIN, TASKS), actions, listed)
    checks: dict[str, Callable[[_Probe], str | None]] = {
        "no task lies in two splits": _splits,
        "find gives the task of a seed": _finds,
        "a task begins the same each time": _begins,
        "the same actions lead to the same": _repeats,
        "environments do not disturb each other": _independent,
        "an action that means nothing is answered, not raised": _nonsense,
        "rewards are finite, progress lies in [0, 1] and is 1 exactly when the task is solved": _honest,
        "equal state keys show the same view": _state_keys,
        "the solution solves the task": _solution,
        "doing nothing does not solve it": _nothing,
    }
    return [first, *(_checked(promise, partial(look, probe)) for promise, look in checks.items())]


class _NotSeenError(Exception):
    """There is nothing to look at."""


def _checked(promise: str, look: Callable[[], str | None]) -> Check:
    try:
        problem = look()
    except _NotSeenError as nothing:
        return Check(promise, None, str(nothing))
    except Exception as error:
        return Check(promise, False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Check(promise, problem is None, problem or "")


def _tasks(probe: _Probe) -> str | None:
    for split in Split if probe.listed is None else ():
        drawn = probe.draw(split, TASKS)
        different = len({task.task_id for task in drawn})
        if len(drawn) != TASKS or different != TASKS:
            return f"tasks({split}, 0, {TASKS}) gave {len(drawn)} tasks, {different} of them different"
        if any(task.split is not split for task in drawn):
            return f"tasks({split}, …) gave a task of another split"
    if not probe.draw(Split.TRAIN, TASKS):
        return "there is no training task"
    return None


def _splits(probe: _Probe) -> str | None:
    seen: dict[tuple[str, str, str], Split] = {}
    for split in Split:
        for task in probe.draw(split, LISTED):
            unit = task.group if task.name else f"seed {task.seed}"
            other = seen.setdefault((task.environment, task.parameters, unit), split)
            if other is not split:
                return f"{unit} lies in {other} and in {split}"
    return None


def _finds(probe: _Probe) -> str | None:
    if not isinstance(probe.world, FindsTasks) or probe.listed is not None:
        raise _NotSeenError("the world has no find(split, seed)")
    wrong = [task.seed for task in probe.tasks if probe.world.find(task.split, task.seed) != task]
    return f"find gives another task for seed {wrong[0]}" if wrong else None


def _begins(probe: _Probe) -> str | None:
    (environment,) = probe.world.environments(1)
    for task in probe.tasks:
        if environment.reset(task) != environment.reset(task):
            return f"seed {task.seed} begins with another observation the second time"
    return None


def _repeats(probe: _Probe) -> str | None:
    (environment,) = probe.world.environments(1)
    for task in probe.tasks:
        first = _walk(probe, environment, task)
        if first != _walk(probe, environment, task):
            return f"seed {task.seed}: the same actions led elsewhere; replay will show nothing"
    return None


def _independent(probe: _Probe) -> str | None:
    if len(probe.tasks) < 2:
        raise _NotSeenError("there is one training task")
    alone = [_walk(probe, probe.world.environments(1)[0], task) for task in probe.tasks[:2]]
    pair = probe.world.environments(2)
    seen = [[(environment.reset(task), None)] for environment, task in zip(pair, probe.tasks, strict=False)]
    plans = [_actions(probe, task) for task in probe.tasks[:2]]
    together: list[list[Step]] = [list(row) for row in seen]
    for turn in range(STEPS):
        for row, (environment, plan) in enumerate(zip(pair, plans, strict=True)):
            last = together[row][-1][1]
            if last is not None and last.terminated:
                continue
            observation = last.observation if last else together[row][0][0]
            together[row].append((observation, environment.step(plan(observation, turn))))
    return None if alone == together else "an environment's steps changed when another one stepped beside it"


def _nonsense(probe: _Probe) -> str | None:
    (environment,) = probe.world.environments(1)
    environment.reset(probe.tasks[0])
    return "it solved the task" if environment.step(NONSENSE).success else None


def _honest(probe: _Probe) -> str | None:
    for task in probe.tasks:
        for _, step in _walk(probe, probe.world.environments(1)[0], task):
            if step is None:
                continue
            if not math.isfinite(step.reward) or not 0 <= step.progress <= 1:
                return f"seed {task.seed}: reward {step.reward}, progress {step.progress}"
            if step.success != (step.progress >= 1) or (step.success and not step.terminated):
                return f"seed {task.seed}: success {step.success} at progress {step.progress}, over {step.terminated}"
    return None


def _state_keys(probe: _Probe) -> str | None:
    views: dict[tuple[int, str], str] = {}
    for task in probe.tasks:
        for observation, step in _walk(probe, probe.world.environments(1)[0], task):
            for seen in (observation, *([step.observation] if step else [])):
                if seen.state_key and views.setdefault((task.seed, seen.state_key), seen.text) != seen.text:
                    return f"seed {task.seed}: the key {seen.state_key} stands for two views"
    if not views:
        raise _NotSeenError("observations have no state_key")
    return None


def _solution(probe: _Probe) -> str | None:
    if not isinstance(probe.world, KnowsSolutions):
        raise _NotSeenError("the world has no facts(task)")
    for task in probe.tasks:
        actions = probe.world.facts(task).gold_actions
        (environment,) = probe.world.environments(1)
        environment.reset(task)
        if not any(environment.step(action).success for action in actions):
            return f"seed {task.seed}: {len(actions)} actions of the solution did not solve it"
    return None


def _nothing(probe: _Probe) -> str | None:
    (environment,) = probe.world.environments(1)
    for task in probe.tasks:
        environment.reset(task)
        if any(environment.step(NONSENSE).success for _ in range(TASKS)):
            return f"seed {task.seed} was solved by actions that mean nothing"
    return None


def _walk(probe: _Probe, environment: Environment, task: Task) -> list[Step]:
    """What is seen and what comes of it, on the same walk each time."""
    observation, act = environment.reset(task), _actions(probe, task)
    steps: list[Step] = [(observation, None)]
    for turn in range(STEPS):
        transition = environment.step(act(observation, turn))
        steps.append((observation, transition))
        observation = transition.observation
        if transition.terminated:
            break
    return steps


def _actions(probe: _Probe, task: Task) -> Callable[[Observation, int], str]:
    """What is done at a turn: any listed action; where none are listed the solution, or else any action to try."""
    chance = random.Random(task.seed)
    solution: Sequence[str] = ()

    def act(observation: Observation, turn: int) -> str:
        if observation.valid_actions:
            return chance.choice(observation.valid_actions)
        if turn < len(solution):
            return solution[turn]
        return chance.choice(probe.actions) if probe.actions else NONSENSE

    if isinstance(probe.world, KnowsSolutions):
        solution = probe.world.facts(task).gold_actions
    return act
