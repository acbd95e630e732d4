"""CookingWorld behind the protocol: folds apart, games independent and deterministic, the door to facts shut."""

from __future__ import annotations

import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from flywheel.config.root import Config, load
from flywheel.environments.adapters.cookingworld import FOLD_SIZE, FOLD_START
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError
from flywheel.trajectory import Split

ROOT = Path(__file__).parents[1]


def test_folds_never_share_a_task(world: World) -> None:
    groups = [{task.group for task in world.tasks(split, 0, 200)} for split in Split]
    assert len(set.union(*groups)) == 600
    with pytest.raises(ConfigError, match="outside"):
        world.tasks(Split.TRAIN, 9_990, 20)


def test_a_fold_holds_each_of_its_seeds_once_and_neighbours_are_unlike(world: World) -> None:
    """Neighbouring seeds would share what the simulator draws first: a hundred of them are no sample of the fold."""
    seeds = [task.seed for task in world.tasks(Split.DEV, 0, FOLD_SIZE)]
    assert sorted(seeds) == list(range(FOLD_START[Split.DEV], FOLD_START[Split.DEV] + FOLD_SIZE))
    assert min(abs(seed - following) for seed, following in pairwise(seeds)) > 1_000


def test_games_are_independent_and_deterministic(world: World) -> None:
    tasks = world.tasks(Split.TRAIN, 0, 4)
    plans = [world.facts(task).gold_actions for task in tasks]
    games = world.environments(4)
    interleaved = [[game.reset(task)] for game, task in zip(games, tasks, strict=True)]
    for turn in range(max(map(len, plans))):
        for game, plan, seen in zip(games, plans, interleaved, strict=True):
            if turn < len(plan):
                seen.append(game.step(plan[turn]).observation)
    for task, plan, seen in zip(tasks, plans, interleaved, strict=True):
        assert [games[0].reset(task), *(games[0].step(action).observation for action in plan)] == seen


def test_gold_solves_the_task_and_milestones_are_worth_100(world: World) -> None:
    for task in world.tasks(Split.DEV, 0, 5):
        facts = world.facts(task)
        game = world.environments(1)[0]
        game.reset(task)
        *_, last = [game.step(action) for action in facts.gold_actions]
        assert last.success
        assert last.terminated
        assert sum(milestone.points for milestone in facts.milestones) == pytest.approx(100)


def test_quickstart_is_long_enough() -> None:
    """The expert's median episode has at least twenty steps."""
    environment = load(ROOT / "configs" / "quickstart.toml").environment
    with open_world(environment.name, canonical(environment.parameters)) as running:
        lengths = [len(running.facts(task).gold_actions) for task in running.tasks(Split.TEST, 0, 60)]
    assert statistics.median(lengths) >= 20


def test_unknown_names_and_parameters() -> None:
    with pytest.raises(ConfigError, match="unknown environment 'kitchen'"):
        open_world("kitchen", "{}")
    with pytest.raises(ConfigError, match="no parameter"), open_world("cookingworld", '{"rooms":3}'):
        pass


def test_missing_java_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_JAVA", "/nowhere/java")
    with pytest.raises(PrerequisiteError, match="no Java at /nowhere/java"), open_world("cookingworld", "{}"):
        pass


def test_the_simulator_dies_with_its_process() -> None:
    code = (
        "import json, os, signal\n"
        "from flywheel.environments.catalog import open_world\n"
        "world = open_world('cookingworld', '{}').__enter__()\n"
        "print(world._gateway.java_process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(killed.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail(f"the JVM {pid} outlived its process")


def test_a_simulator_that_dies_while_a_game_is_made_is_infrastructure(smoke: Config) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with open_world(smoke.environment.name, canonical(smoke.environment.parameters)) as world:
        for child in psutil.Process().children(recursive=True):
            if child.pid not in before:
                child.kill()
                child.wait()
        with pytest.raises(InfrastructureError, match="does not answer"):
            world.environments(1)
