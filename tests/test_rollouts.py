"""Rollouts: many episodes at once, whatever their environments do, and whoever decides."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flywheel.agents.policy import Decision, Past, Policy, Turn
from flywheel.agents.scripted import Expert, RandomPolicy
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.protocol import Observation, Transition, World
from flywheel.errors import ConfigError, InfrastructureError
from flywheel.rollouts.engine import EnvironmentWorkers, Rollout, in_process
from flywheel.rollouts.environment_workers import EnvironmentWorker, RemoteWorker, remote_workers
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.rollouts.play import play
from flywheel.trajectory import Split, StopReason, Task, Trajectory
from tests.corridor import LENGTH, NAME, Corridor, CorridorWorld, task_of

ROOT = Path(__file__).parents[1]
ORIGIN = Origin(1, "collect", "test")


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments go wrong, each once."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("FAULTS", str(folder))
    return folder


def workers(environments: int, processes: int, timeout: float = 30.0) -> EnvironmentWorkers:
    def crew() -> AbstractAsyncContextManager[Sequence[EnvironmentWorker]]:
        return remote_workers(NAME, "{}", environments=environments, processes=processes, timeout=timeout)

    return crew


def walked(
    seeds: Sequence[int], workers: EnvironmentWorkers, budget: Budget | None = None, policy: Policy | None = None
) -> dict[int, Trajectory]:
    acting = policy or Expert(CorridorWorld())
    jobs = [Job(task_of(seed)) for seed in seeds]
    played = list(Rollout(acting, jobs, workers, budget=budget or Budget(20), origin=ORIGIN))
    assert len(played) == len(seeds)
    return {trajectory.seed: trajectory for trajectory in played}


def test_workers_play_what_one_process_plays(world: World, smoke: Config) -> None:
    from flywheel.rollouts.play import make_workers

    jobs = [Job(task) for task in world.tasks(Split.TRAIN, 0, 12)]
    environment = smoke.environment.model_copy(update={"workers": 2, "parallel": 5})
    apart = smoke.model_copy(update={"environment": environment})

    def played(workers: EnvironmentWorkers) -> list[list[tuple[str, str, float]]]:
        found = Rollout(RandomPolicy(), jobs, workers, budget=Budget(25), origin=ORIGIN)
        return [
            [(step.observation, step.action, step.progress) for step in trajectory.steps]
            for trajectory in sorted(found, key=lambda trajectory: trajectory.seed)
        ]

    assert played(in_process(world, 1)) == played(in_process(world, 8)) == played(make_workers(apart, world))


def test_a_hung_environment_breaks_its_episode_and_is_restarted(faults: Path) -> None:
    began = time.monotonic()
    found = walked([101, 1, 2], workers(3, 3, timeout=1.0))
    assert time.monotonic() - began < 20
    assert found[101].stop_reason is StopReason.INFRASTRUCTURE
    assert found[101].error == "the environment did not answer within 1 s at step"
    assert found[1].success and found[2].success
    assert walked([101], workers(1, 1))[101].success


def test_a_crashed_environment_takes_only_its_worker_along(faults: Path) -> None:
    found = walked([201, 1, 2, 3, 4, 5], workers(4, 2))
    broken = [trajectory for trajectory in found.values() if trajectory.stop_reason is StopReason.INFRASTRUCTURE]
    assert found[201] in broken and len(broken) <= 2
    assert "died with code 3" in found[201].error
    assert all("neighbour" in one.error for one in broken if one.seed != 201)
    assert all(trajectory.success for trajectory in found.values() if trajectory not in broken)


def test_who_asks_a_dead_worker_first_hears_whose_fault_it_was(faults: Path) -> None:
    async def asked() -> str:
        async with workers(2, 1)() as (one, other):
            await other.reset(task_of(1))
            await one.reset(task_of(201))
            await one.step("right")
            with pytest.raises(InfrastructureError, match="died with code 3 at step"):
                await one.step("right")
            with pytest.raises(InfrastructureError) as late:
                await other.step("right")
            await one.reset(task_of(201))
            with pytest.raises(InfrastructureError) as later:
                await other.step("right")
            assert str(later.value) == str(late.value)
            return str(late.value)

    assert asyncio.run(asked()) == "a neighbour's worker died with code 3"


def test_a_worker_that_dies_while_nobody_asks_blames_no_neighbour() -> None:
    async def asked() -> None:
        async with workers(1, 1)() as (worker,):
            await worker.reset(task_of(1))
            assert isinstance(worker, RemoteWorker) and worker.process is not None
            worker.process.popen.kill()
            while not worker.process.ended.is_set():
                await asyncio.sleep(0.01)
            with pytest.raises(InfrastructureError, match=r"^the environment's worker died with code -9$"):
                await worker.step("right")

    asyncio.run(asked())


def test_nonsense_and_chatter_do_not_get_through(faults: Path) -> None:
    found = walked([301, 401, 501], workers(3, 1))
    assert found[301].error == "the environment answers nonsense: reward nan, progress 0.3333333333333333"
    assert found[401].success
    assert found[501].error == "the corridor collapsed"


def test_a_worker_that_cannot_open_its_world_says_why() -> None:
    def crew() -> AbstractAsyncContextManager[Sequence[EnvironmentWorker]]:
        return remote_workers("cookingworld", '{"numRooms":3}', environments=2, processes=1, timeout=30.0)

    with pytest.raises(ConfigError, match="no parameter"):
        list(Rollout(RandomPolicy(), [Job(task_of(1))], crew, budget=Budget(5), origin=ORIGIN))


def test_broken_episodes_are_retried_and_never_counted(faults: Path, lake: Lake) -> None:
    settings = load(
        ROOT / "configs" / "smoke.toml",
        [
            f"data_dir={lake.root}",
            f"environment.name={NAME}",
            "environment.parameters={}",
            "environment.workers=2",
            "environment.parallel=4",
            "environment.step_timeout=1.0",
        ],
    )
    world: World = CorridorWorld()
    jobs = [Job(task_of(seed)) for seed in (101, 201, 301, 501, 1, 2, 3)]
    ids = play(settings, lake, world, Expert(world), jobs, ORIGIN)
    rows = lake.sql("select seed, stop_reason, error, success from trajectories order by seed, attempt").to_pylist()
    assert len(rows) == len(ids)
    for seed in (101, 201, 301, 501):
        own = [row for row in rows if row["seed"] == seed]
        assert own[0]["stop_reason"] == "infrastructure" and own[0]["error"]
        assert own[-1]["success"]
    assert sum(row["success"] for row in rows) == len(jobs)
    assert len(ids) == len(set(ids))


class Costly(Expert):
    """An expert whose words cost something, and that takes its time."""

    def __init__(self, world: World, *, pause: float = 0.0) -> None:
        super().__init__(world)
        self._pause = pause

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        time.sleep(self._pause)
        return [replace(one, prompt_tokens=90, completion_tokens=10, cost=0.5) for one in super().act(turns)]


@pytest.mark.parametrize(
    ("budget", "pause", "stop", "length"),
    [
        (Budget(3), 0.0, StopReason.STEP_LIMIT, 3),
        (Budget(0, tokens=250), 0.0, StopReason.TOKEN_LIMIT, 3),
        (Budget(0, cost=0.9), 0.0, StopReason.COST_LIMIT, 2),
        (Budget(0, seconds=0.5), 0.2, StopReason.TIME_LIMIT, 2),
        (Budget(0), 0.0, StopReason.SUCCESS, LENGTH),
    ],
)
def test_budgets_truncate(budget: Budget, pause: float, stop: StopReason, length: int) -> None:
    world = CorridorWorld()
    one = walked([1], in_process(world, 1), budget, Costly(world, pause=pause))[1]
    assert (one.stop_reason, one.length) == (stop, length)
    assert not one.steps[-1].terminated or stop is StopReason.SUCCESS
    assert one.steps[-1].truncated == (stop is not StopReason.SUCCESS and stop is not StopReason.TIME_LIMIT)


class Walker:
    """Goes one way, and remembers which pasts it took over."""

    name, version = "walker", "1"

    def __init__(self, way: str) -> None:
        self.policy_id, self._way = f"walker-{way}", way
        self.taken_over: list[int] = []

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        self.taken_over.append(len(past))

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [Decision(self._way) for _ in turns]


def test_an_update_may_start_on_a_partly_filled_pool_and_running_episodes_go_on_under_the_next_policy() -> None:
    world = CorridorWorld()
    first, second = Expert(world), Walker("right")
    gate = Gated(first)
    jobs = [Job(task_of(seed)) for seed in range(8)]
    rollout = Rollout(gate, jobs, in_process(world, 4), budget=Budget(0), origin=ORIGIN)
    played: list[Trajectory] = []
    for one in rollout:
        played.append(one)
        if len(played) == 2:
            assert gate.waiting
            rollout.swap(second)
            gate.open()
    assert len(played) == len(jobs) and all(trajectory.success for trajectory in played)
    mixed = [trajectory for trajectory in played if len({step.policy_id for step in trajectory.steps}) == 2]
    assert mixed and any(second.taken_over)
    for one in mixed:
        assert one.policy_id == first.policy_id
        deciders = [step.policy_id for step in one.steps]
        assert deciders == sorted(deciders, key=[first.policy_id, second.policy_id].index)


class Gated:
    """A policy that stops answering slots above the first after two steps, until it is opened."""

    name, version = "expert", "1"

    def __init__(self, policy: Expert) -> None:
        self.policy_id, self._policy = policy.policy_id, policy
        self._opened = False
        self._steps: dict[int, int] = {}
        self.waiting = False

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        self._steps[slot] = 0
        self._policy.begin(slot, task, attempt, past)

    def open(self) -> None:
        self._opened = True

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        decided = {}
        for turn in turns:
            self._steps[turn.slot] += 1
            if turn.slot == 0 or self._steps[turn.slot] <= 2 or self._opened:
                decided[turn.slot] = self._policy.act([turn])[0]
            else:
                self.waiting = True
                decided[turn.slot] = Decision("stand still", trainable=False)
        return [decided[turn.slot] for turn in turns]


def test_finished_episodes_come_while_others_run() -> None:
    world = CorridorWorld()
    slow = [Job(task_of(0)), *(Job(task_of(seed)) for seed in range(1, 9))]
    rollout = Rollout(Costly(world, pause=0.02), slow, in_process(world, 3), budget=Budget(20), origin=ORIGIN)
    sizes = [len(batch) for batch in rollout.batches(most=100, steps=10_000, seconds=0.1)]
    assert sum(sizes) == 9 and len(sizes) > 1


def test_leaving_the_loop_stops_everything() -> None:
    world = CorridorWorld()
    jobs = (Job(task_of(seed)) for seed in range(10**9))
    for number, _ in enumerate(Rollout(Expert(world), jobs, workers(4, 2), budget=Budget(20), origin=ORIGIN)):
        if number == 5:
            break


def test_a_policys_own_error_is_not_swallowed() -> None:
    class Wrong(Walker):
        def act(self, turns: Sequence[Turn]) -> list[Decision]:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        walked([1], in_process(CorridorWorld(), 2), policy=Wrong("left"))


def test_too_few_decisions_are_an_error_and_no_hang() -> None:
    class Short(Walker):
        def act(self, turns: Sequence[Turn]) -> list[Decision]:
            return []

    with pytest.raises(RuntimeError, match="0 answers to 1 questions"):
        walked([1], in_process(CorridorWorld(), 1), policy=Short("left"))


def test_what_ran_out_of_time_is_not_decided_in_the_next_episode() -> None:
    """Turns that wait when their time is up are forgotten: the next episode in the slot starts with its own."""

    class Watchful(Walker):
        def __init__(self) -> None:
            super().__init__("left")
            self.fresh: set[int] = set()
            self.problems: list[str] = []

        def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
            self.fresh.add(slot)

        def act(self, turns: Sequence[Turn]) -> list[Decision]:
            time.sleep(0.03)
            slots = [turn.slot for turn in turns]
            if len(set(slots)) < len(slots):
                self.problems.append("a slot twice in one batch")
            for turn in turns:
                if turn.slot in self.fresh and turn.observation.feedback:
                    self.problems.append("another episode's turn first")
                self.fresh.discard(turn.slot)
            return super().act(turns)

    policy = Watchful()
    walked(range(40), uneven(5), Budget(0, seconds=0.1), policy)
    assert policy.problems == []


class Uneven:
    """A corridor whose steps take longer the higher its number is."""

    def __init__(self, number: int) -> None:
        self._game, self._pause = Corridor(), 0.008 * number

    async def reset(self, task: Task) -> Observation:
        return self._game.reset(task)

    async def step(self, action: str) -> Transition:
        await asyncio.sleep(self._pause)
        return self._game.step(action)


def uneven(count: int) -> EnvironmentWorkers:
    @asynccontextmanager
    async def workers() -> AsyncIterator[Sequence[EnvironmentWorker]]:
        yield [Uneven(number) for number in range(count)]

    return workers


COLLECT = """
import sys
from pathlib import Path
from flywheel.rollouts.play import play
from flywheel.rollouts.episode import Job, Origin
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.agents.scripted import Expert
from tests.corridor import CorridorWorld, NAME, task_of
import time
class Slow(Expert):
    def act(self, turns):
        time.sleep(0.02)
        return super().act(turns)
settings = load(Path("configs/smoke.toml"), ["data_dir=" + sys.argv[1], "environment.name=" + NAME,
    "environment.parameters={}", "environment.workers=2", "environment.parallel=4"])
lake = Lake.of(settings, create=True)
world = CorridorWorld()
print("ready", flush=True)
jobs = [Job(task_of(seed)) for seed in range(int(sys.argv[2]))]
play(settings, lake, world, Slow(world), jobs, Origin(1, "collect", "t"))
print("done", flush=True)
"""


def test_kill_9_keeps_what_was_committed_and_plays_nothing_of_it_again(tmp_path: Path) -> None:
    episodes = 150

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COLLECT, str(tmp_path / "lake"), str(episodes)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    seen: set[str] = set()
    for _ in range(3):
        process = start()
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        lake, deadline = Lake(tmp_path / "lake"), time.monotonic() + 60
        while _count(lake) <= len(seen) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        children = _children(process.pid)
        assert len(children) == 2
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        now = set(lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist())
        assert seen <= now
        seen = now
        for _ in range(100):
            if not any(_alive(child) for child in children):
                break
            time.sleep(0.05)
        assert not any(_alive(child) for child in children), "workers outlive their collector"
    process = start()
    told, _ = process.communicate(timeout=120)
    assert told.endswith("done\n")
    lake = Lake(tmp_path / "lake")
    rows = lake.sql(
        "select count(*) as n, count(distinct seed) as seeds, min(attempt) as a, max(attempt) as b from trajectories"
    )
    assert rows.to_pylist() == [{"n": episodes, "seeds": episodes, "a": 0, "b": 0}]


def _count(lake: Lake) -> int:
    return int(lake.sql("select count(*) as n from trajectories").to_pylist()[0]["n"])


def _children(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(part) for thread in threads for part in thread.read_text().split()]


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
