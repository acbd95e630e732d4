"""Who plays what in an iteration: teachers first, then the champion beside them, always on tasks of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flywheel.agents.collect import play
from flywheel.agents.rollout import Job, Origin
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.distill.policies import EXPERT, NOISY_EXPERT, make_policy
from flywheel.distill.registry import RANDOM
from flywheel.environments.catalog import canonical, open_world
from flywheel.trajectory import Split


@dataclass(frozen=True, slots=True)
class Share:
    """One policy's part of a collection: training tasks [start, start + count)."""

    policy: str
    start: int
    count: int


def plan(config: Config, iteration: int, champion_id: str) -> list[Share]:
    """Divide an iteration's new training tasks. A champion that is no student yet collects nothing."""
    settings = config.collect
    first = 0 if iteration == 1 else settings.episodes + (iteration - 2) * settings.later_episodes
    total = settings.episodes if iteration == 1 else settings.later_episodes
    own = 0 if iteration == 1 or champion_id == RANDOM else round(total * settings.champion_share)
    expert = round((total - own) * settings.expert_share)
    counts = {EXPERT: expert, NOISY_EXPERT: total - own - expert, champion_id: own}
    shares = []
    for policy, count in counts.items():
        if count:
            shares.append(Share(policy, first, count))
            first += count
    return shares


def collect(
    config: Config,
    lake: Lake,
    iteration: int,
    champion_id: str,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Collect an iteration's training episodes; what is in the lake already is not played again. Counts by policy."""
    counts: dict[str, int] = {}
    with open_world(config.environment.name, canonical(config.environment.parameters)) as world:
        for share in plan(config, iteration, champion_id):
            policy = make_policy(config, lake, world, share.policy)
            jobs = [Job(task) for task in world.tasks(Split.TRAIN, share.start, share.count)]
            origin = Origin(iteration, "collect", config.identity(), champion_id)
            counts[policy.name] = len(play(config, lake, world, policy, jobs, origin, progress))
    return counts
