"""Policies by what people call them: teachers, the random floor, the champion, or any registered student."""

from __future__ import annotations

from flywheel.agents.policy import Policy
from flywheel.agents.scripted import Expert, RandomPolicy
from flywheel.agents.tutored import Tutored
from flywheel.config import Config
from flywheel.datasets.lake import Lake
from flywheel.distill.registry import RANDOM, champion, policy_directory, registered
from flywheel.distill.students import load_policy
from flywheel.distill.train import pick_device
from flywheel.environments.protocol import World

EXPERT, NOISY_EXPERT, CHAMPION_NAME, TUTORED = "expert", "noisy_expert", "champion", "tutored"


def make_policy(config: Config, lake: Lake, world: World, name: str, champion_id: str = "") -> Policy:
    """`expert`, `noisy_expert`, `random`, `champion`, `tutored` (the champion begins, the expert finishes), or a policy
    id (or the unambiguous beginning of one). `champion_id`: the champion of the time, where it is not today's."""
    if name == CHAMPION_NAME:
        name = champion_id or champion(lake)
    if name == EXPERT:
        return Expert(world, seed=config.seed)
    if name == NOISY_EXPERT:
        return Expert(world, noise=config.collect.noise, seed=config.seed)
    if name == RANDOM:
        return RandomPolicy(seed=config.seed, max_repeats=config.student.max_repeats)
    if name == TUTORED:
        student = make_policy(config, lake, world, CHAMPION_NAME, champion_id)
        return Tutored(world, student, longest=max(1, config.environment.max_steps // 3), seed=config.seed)
    row = registered(lake, name)
    return load_policy(policy_directory(lake, str(row.policy_id)), pick_device(config.train.device))
