"""Shared fixtures: one running CookingWorld, and a small lake made of real episodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from flywheel.agents.policy import Policy
from flywheel.agents.scripted import Expert, Mistakes, RandomPolicy
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Split, Trajectory
from tests.gateways import Recorder, recording
from tests.scripted_model import scripted_model
from tests.servers import BACKENDS, PostgreSQL, lake_url, running_postgresql, running_s3

ROOT = Path(__file__).parents[1]
ORIGIN = Origin(iteration=1, purpose="collect", config_digest="test")

os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("any machine", deadline=None)  # tests share their cores
settings.load_profile("any machine")
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
        return list(Rollout(policy, jobs, in_process(world, 8), budget=Budget(max_steps), origin=ORIGIN))

    return run


@pytest.fixture(scope="session")
def golden(world: World, play: Play) -> list[Trajectory]:
    """Eight expert episodes, by seed."""
    return sorted(play(Expert(world), 8), key=lambda trajectory: trajectory.seed)


@pytest.fixture(scope="session")
def noisy(world: World, play: Play) -> list[Trajectory]:
    """Sixteen episodes of a very noisy expert: successes and failures."""
    return play(Expert(world, Mistakes(wrong_action=0.25)), 16, start=100)


@pytest.fixture(scope="session")
def aimless(play: Play) -> list[Trajectory]:
    """Eight episodes of random valid actions."""
    return play(RandomPolicy(), 8)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    empty = Lake(tmp_path / "a lake", create=True)
    yield empty
    empty.close()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A real PostgreSQL server on a free loopback port."""
    with running_postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of a bucket on a real S3-compatible server, with the environment that points the client at it."""
    with running_s3() as url:
        yield url


@pytest.fixture(params=BACKENDS)
def any_lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lake]:
    """An empty lake on each kind of catalog and storage."""
    with Lake(lake_url(request.param, request, tmp_path), create=True) as empty:
        yield empty


@pytest.fixture(scope="session")
def upstream() -> Iterator[str]:
    """The base URL of a scripted model."""
    with scripted_model() as url:
        yield url


@pytest.fixture
def recorder(upstream: str, tmp_path: Path) -> Iterator[Recorder]:
    """A gateway in front of it."""
    with recording(tmp_path, upstream) as running:
        yield running
