"""Collection: resumes where it stood, keeps infrastructure failures apart and tries their tasks again."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.agents.scripted import Expert
from flywheel.collect.stage import plan
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import Environment, Observation, Transition, World
from flywheel.errors import InfrastructureError
from flywheel.filters.curate import curate
from flywheel.rollouts.episode import Job, Origin
from flywheel.rollouts.play import play as play_jobs
from flywheel.trajectory import Split, StopReason, Task


def test_a_second_collection_plays_nothing(smoke: Config, lake: Lake, world: World, origin: Origin) -> None:
    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 0, 6)]
    first = play_jobs(smoke, lake, world, Expert(world), jobs[:3], origin)
    snapshot = lake.snapshot()
    both = play_jobs(smoke, lake, world, Expert(world), jobs, origin)
    assert both[:3] == first
    assert lake.snapshot() == snapshot + 1
    play_jobs(smoke, lake, world, Expert(world), jobs, origin)
    assert lake.snapshot() == snapshot + 1


class Flaky:
    """A real game whose connection breaks once, at its third step of the first episode on seed 1."""

    def __init__(self, game: Environment, broken: list[int]) -> None:
        self._game, self._broken = game, broken

    def reset(self, task: Task) -> Observation:
        self._seed, self._steps = task.seed, 0
        return self._game.reset(task)

    def step(self, action: str) -> Transition:
        self._steps += 1
        if self._seed == 1 and self._steps == 3 and not self._broken:
            self._broken.append(self._seed)
            raise InfrastructureError("connection lost")
        return self._game.step(action)


class FlakyWorld:
    def __init__(self, world: World) -> None:
        self._world = world
        self._broken: list[int] = []

    def environments(self, count: int) -> Sequence[Environment]:
        return [Flaky(game, self._broken) for game in self._world.environments(count)]

    def __getattr__(self, name: str) -> object:
        return getattr(self._world, name)


def test_a_broken_episode_is_kept_apart_and_its_task_tried_again(
    smoke: Config, lake: Lake, world: World, origin: Origin
) -> None:
    flaky: World = FlakyWorld(world)  # type: ignore[assignment]
    jobs = [Job(world.find(Split.TRAIN, seed)) for seed in range(3)]
    ids = play_jobs(smoke, lake, flaky, Expert(world), jobs, origin)
    assert len(ids) == 4
    curate(smoke, lake)
    rows = lake.sql(
        "select seed, stop_reason, route, error, verified from trajectories order by seed, attempt"
    ).to_pylist()
    assert [row["seed"] for row in rows] == [0, 1, 1, 2]
    assert (rows[1]["stop_reason"], rows[1]["route"]) == (StopReason.INFRASTRUCTURE, "quarantine")
    assert rows[1]["error"] == "connection lost"
    assert [row["verified"] for row in rows] == [1, 0, 1, 1]
    verdicts = lake.sql("select count(distinct trajectory_id) as n from verdicts").to_pylist()
    assert verdicts == [{"n": 3}]


def test_tasks_of_iterations_never_overlap(smoke: Config) -> None:
    seen: set[int] = set()
    for iteration in range(1, 6):
        for share in plan(smoke, iteration, "hierarchical-1"):
            tasks = set(range(share.start, share.start + share.count))
            assert not tasks & seen
            seen |= tasks
    assert seen == set(range(len(seen)))


def test_the_champion_collects_from_the_second_iteration_on(smoke: Config) -> None:
    assert [share.policy for share in plan(smoke, 1, "champ")] == ["expert", "noisy_expert"]
    assert [share.policy for share in plan(smoke, 2, "champ")] == ["expert", "noisy_expert", "champ"]
    assert [share.policy for share in plan(smoke, 2, "random")] == ["expert", "noisy_expert"]


def test_a_teacher_may_have_the_champions_name(smoke: Config) -> None:
    def shares(teachers: dict[str, float], iteration: int, champion: str) -> dict[str, int]:
        collect = smoke.collect.model_copy(update={"teachers": teachers})
        return {
            one.policy: one.count for one in plan(smoke.model_copy(update={"collect": collect}), iteration, champion)
        }

    assert shares({"random": 1.0}, 1, "random") == {"random": 24}
    assert shares({"tutored": 1.0}, 1, "random") == {"tutored": 24}
    assert shares({"champ": 1.0}, 2, "champ") == {"champ": 12}
