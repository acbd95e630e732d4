"""Episodes with known ground truth, played or planted here, on which verifiers are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flywheel.agents.policy import Policy
from flywheel.agents.scripted import NO_OP, Expert, Idle, Mistakes, RandomPolicy
from flywheel.config.root import Config
from flywheel.environments.capabilities import solver
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError
from flywheel.filters.calibration.reward_hacks import LAKE_WIDE, REWARD_HACKS, cut
from flywheel.rollouts.play import rehearse
from flywheel.rollouts.tasks import task_source
from flywheel.trajectory import Split, Trajectory

NOISES = (0.05, 0.15, 0.3)
IDLE_STEPS = 8


@dataclass(frozen=True, slots=True)
class Labelled:
    """An episode with its truth. `cheat` names the class of a planted one and is empty for an honest one."""

    trajectory: Trajectory
    success: bool
    cheat: str = ""
    drawn: bool = True
    """Does it count in the agreement? All honest episodes do, and one cheat a task."""


def labelled_set(config: Config, world: World, progress: Callable[[int], None] = lambda done: None) -> list[Labelled]:
    """Experts with and without mistakes and random play on calibration tasks, and each class of cheat planted in it."""
    played = sorted(_play(config, world, Expert(world)), key=lambda trajectory: trajectory.seed)
    honest, golden = list(played), _golden(played)
    progress(len(played))
    clumsy: list[Policy] = [*(Expert(world, Mistakes(wrong_action=noise)) for noise in NOISES), RandomPolicy()]
    for policy in clumsy:
        honest += _play(config, world, policy)
        progress(len(played))
    solutions = solver(world, "a calibration")
    facts = [solutions.facts(trajectory.task) for trajectory in golden]
    classes = {name: plant for name, plant in REWARD_HACKS.items() if name not in LAKE_WIDE}
    cheats = [
        Labelled(plant(golden[row], golden[row - 1], facts[row]), False, name, row % len(classes) == number)
        for number, (name, plant) in enumerate(classes.items())
        for row in range(len(golden))
    ]
    return [*(Labelled(trajectory, bool(trajectory.success)) for trajectory in honest), *cheats]


def acceptance_set(config: Config, world: World) -> dict[str, list[Trajectory]]:
    """Golden episodes, their initial states, no-ops, and golden ones whose actions were corrupted."""
    golden = _golden(_play(config, world, Expert(world)))[:8]
    return {
        "golden": golden,
        "initial state": [cut(trajectory, 0) for trajectory in golden],
        "no-ops": _play(config, world, Idle(), max_steps=IDLE_STEPS)[:8],
        "corrupted golden": [corrupted(trajectory) for trajectory in golden],
    }


def _golden(played: Sequence[Trajectory]) -> list[Trajectory]:
    """The successes. Raises `ConfigError` if they are too few to measure anything."""
    golden = [trajectory for trajectory in played if trajectory.success]
    if len(golden) < 2:
        raise ConfigError(
            f"the expert solves {len(golden)} of {len(played)} calibration tasks, and two are needed; "
            "raise environment.max_steps or curate.calibration_tasks"
        )
    return golden


def corrupted(trajectory: Trajectory) -> Trajectory:
    """A golden record in whose second half every action means nothing, all else untouched."""
    half = len(trajectory.steps) // 2
    broken = (replace(step, action=NO_OP) for step in trajectory.steps[half:])
    return replace(trajectory, steps=(*trajectory.steps[:half], *broken))


def _play(config: Config, world: World, policy: Policy, max_steps: int = 0) -> list[Trajectory]:
    tasks = task_source(config, world).draw(Split.DEV, config.curate.calibration_start, config.curate.calibration_tasks)
    return rehearse(config, world, policy, tasks, "collect", max_steps)
