"""Shared fixtures: one running CookingWorld, and a small lake made of real episodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flywheel.agents.policy import Policy
from flywheel.agents.rollout import Job, Origin, rollouts
from flywheel.agents.scripted import Expert, RandomPolicy
from flywheel.config import Config, load
from flywheel.datasets.lake import Lake
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.trajectory import Split, Trajectory

ROOT = Path(__file__).parents[1]
ORIGIN = Origin(iteration=1, purpose="collect", config_digest="test")

os.environ["HF_HUB_OFFLINE"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background shells, and children would inherit it

Play = Callable[..., list[Trajectory]]


@pytest.fixture(scope="session")
def origin() -> Origin:
    """The place in the lineage that test episodes share."""
    return ORIGIN


@pytest.fixture(scope="session")
def smoke() -> Config:
    return load(ROOT / "configs" / "smoke.toml")


@pytest.fixture(scope="session")
def world(smoke: Config) -> Iterator[World]:
    with open_world(smoke.environment.name, canonical(smoke.environment.parameters)) as running:
        yield running


@pytest.fixture(scope="session")
def play(world: World) -> Play:
    """Real episodes: play(policy, count, split=…, start=…, max_steps=…)."""

    def run(
        policy: Policy, count: int, split: Split = Split.TRAIN, start: int = 0, max_steps: int = 40
    ) -> list[Trajectory]:
        jobs = [Job(task) for task in world.tasks(split, start, count)]
        return list(rollouts(policy, jobs, world.environments(8), max_steps=max_steps, origin=ORIGIN))

    return run


@pytest.fixture(scope="session")
def golden(world: World, play: Play) -> list[Trajectory]:
    """Eight expert episodes, by seed."""
    return sorted(play(Expert(world), 8), key=lambda one: one.seed)


@pytest.fixture(scope="session")
def noisy(world: World, play: Play) -> list[Trajectory]:
    """Sixteen episodes of a very noisy expert: successes and failures."""
    return play(Expert(world, noise=0.25), 16, start=100)


@pytest.fixture(scope="session")
def aimless(play: Play) -> list[Trajectory]:
    """Eight episodes of random valid actions."""
    return play(RandomPolicy(), 8)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    empty = Lake(tmp_path / "a lake", create=True)
    yield empty
    empty.close()
