"""Rollouts: many episodes at once, each a coroutine; a worker whose episode ends takes the next task at once.

Episodes run in a thread of their own. Who reads them may take the time to store them or to train on them, and hand in
a better policy: episodes that run go on under it (`Rollout.swap`), and each step says who decided it.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from flywheel.agents.inference.batching import Batcher
from flywheel.agents.policy import AdvisedPolicy, AsyncPolicy, Decision, Policy, Turn
from flywheel.environments.protocol import Observation, World
from flywheel.errors import InfrastructureError
from flywheel.rollouts.environment_workers import EnvironmentWorker, inline_workers
from flywheel.rollouts.episode import Budget, Episode, Job, Origin, as_calls
from flywheel.trajectory import StopReason, Task, Trajectory
from flywheel.unknowns import known_sum

MAX_REFUSALS = 3
"""How often an auditor may refuse to believe that a task is done."""
EnvironmentWorkers = Callable[[], AbstractAsyncContextManager[Sequence[EnvironmentWorker]]]


@dataclass(frozen=True, slots=True)
class Ruling:
    """Why a task is not done, or an empty string if it is; and what it took to say so."""

    why: str = ""
    tokens: int | None = 0
    cost: float | None = 0.0


class Auditor(Protocol):
    """Asked when an agent says that it is done.

    It is shown what was seen and not what was done: an agent's own report would be believed too readily.
    """

    async def audit(self, task: Task, seen: Sequence[Observation]) -> Ruling: ...

    async def close(self) -> None:
        """The event loop ends; connections must not outlive it."""


class RolloutCallback(Protocol):
    """Follows episodes from the thread in which they run. Times are seconds."""

    def begun(self, slot: int, episode: Episode) -> None: ...

    def decided(self, slot: int, episode: Episode, decision: Decision, seconds: float) -> None: ...

    def stepped(self, slot: int, episode: Episode, seconds: float) -> None: ...

    def ended(self, slot: int, trajectory: Trajectory) -> None: ...


@dataclass(slots=True)
class Clock:
    """Where the time went, in seconds: `policy` counts batches once, `environment` the answers of all workers."""

    wall: float = 0.0
    policy: float = 0.0
    environment: float = 0.0
    steps: int = 0


class _Sign(Enum):
    """What comes from the rollouts' thread beside trajectories and errors."""

    END = auto()
    LATE = auto()


@dataclass(slots=True)
class _Running:
    """An episode with what the engine needs to know of it. `acting`: the policy that has taken it over last."""

    slot: int
    episode: Episode
    acting: Policy | None = None
    refusals: int = 0


@dataclass(slots=True)
class Rollout:
    """Plays jobs; iterating yields each trajectory as soon as it ends.

    A broken environment or model server yields one marked INFRASTRUCTURE. Leaving the iteration stops what runs.
    """

    policy: Policy
    jobs: Iterable[Job]
    workers: EnvironmentWorkers
    budget: Budget
    origin: Origin
    auditor: Auditor | None = None
    callbacks: Sequence[RolloutCallback] = ()
    clock: Clock = field(default_factory=Clock)
    _done: queue.SimpleQueue[Trajectory | BaseException | _Sign] = field(default_factory=queue.SimpleQueue)
    _playing: int = 0
    _async_policy: tuple[Policy, bool] | None = None
    """The policy that was asked last, and whether it needs no batch, which takes a while to find out."""
    _asked: list[AsyncPolicy] = field(default_factory=list)
    """Policies and auditors to close when the loop ends."""
    _batcher: Batcher = field(init=False)

    def swap(self, policy: Policy) -> None:
        """From the next decision on, this policy decides, also in episodes that another one began."""
        self.policy = policy

    def __iter__(self) -> Iterator[Trajectory]:
        for batch in self.batches(1):
            yield from batch

    def batches(self, most: int, steps: int = 1, seconds: float = math.inf) -> Iterator[list[Trajectory]]:
        """Finished trajectories in lists of up to `most`, of up to `steps` steps or one longer trajectory; none waits
        for others longer than `seconds`."""
        loop = asyncio.new_event_loop()
        main = loop.create_task(self._main())
        thread = threading.Thread(target=_run, args=(loop, main, self._done), name="rollouts", daemon=True)
        thread.start()
        try:
            batch: list[Trajectory] = []
            deadline = math.inf
            while True:
                arrived = self._next(deadline)
                if isinstance(arrived, Trajectory):
                    deadline = deadline if batch else time.monotonic() + seconds
                    batch.append(arrived)
                full = len(batch) >= most or sum(trajectory.length for trajectory in batch) >= steps
                if batch and (full or not isinstance(arrived, Trajectory)):
                    yield batch
                    batch, deadline = [], math.inf
                if isinstance(arrived, BaseException):
                    raise arrived
                if arrived is _Sign.END:
                    return
        finally:
            with suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(main.cancel)
            thread.join()

    def _next(self, deadline: float) -> Trajectory | BaseException | _Sign:
        """What comes next, or `LATE`."""
        try:
            return self._done.get(timeout=None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return _Sign.LATE

    async def _main(self) -> None:
        began = time.perf_counter()
        jobs = iter(self.jobs)
        self._batcher = Batcher(lambda: self._playing)
        batches = asyncio.create_task(self._batcher.run())
        try:
            async with self.workers() as workers, asyncio.TaskGroup() as group:
                for slot, worker in enumerate(workers):
                    group.create_task(self._fill(slot, worker, jobs))
        finally:
            batches.cancel()
            for policy in self._asked:
                await policy.close()
            if self.auditor is not None:
                await self.auditor.close()
            self.clock.wall, self.clock.policy = time.perf_counter() - began, self._batcher.busy

    async def _fill(self, slot: int, worker: EnvironmentWorker, jobs: Iterator[Job]) -> None:
        for job in jobs:
            running = _Running(slot, Episode(job, self.policy, self.origin))
            for callback in self.callbacks:
                callback.begun(slot, running.episode)
            self._playing += 1
            try:
                trajectory = await self._play(running, worker)
            finally:
                self._playing -= 1
            for callback in self.callbacks:
                callback.ended(slot, trajectory)
            self._done.put(trajectory)

    async def _play(self, running: _Running, worker: EnvironmentWorker) -> Trajectory:
        episode = running.episode
        try:
            async with asyncio.timeout(self.budget.seconds or None):
                began = time.perf_counter()
                episode.observation = await worker.reset(episode.job.task)
                self.clock.environment += time.perf_counter() - began
                while True:
                    turn, decision, seconds = await self._believed(running, worker)
                    if decision.action is None:
                        episode.spend(decision)
                        return episode.finished(decision.stop, decision.error)
                    decision = as_calls(decision, turn.observation, len(episode.steps))
                    assert decision.action is not None
                    began = time.perf_counter()
                    transition = await worker.step(decision.action)
                    took = time.perf_counter() - began
                    self.clock.environment += took
                    self.clock.steps += 1
                    assert running.acting is not None
                    stop = episode.record(turn, decision, transition, running.acting, seconds + took, self.budget)
                    for callback in self.callbacks:
                        callback.stepped(running.slot, episode, took)
                    if stop is not None:
                        return episode.finished(stop)
        except TimeoutError:
            return episode.finished(StopReason.TIME_LIMIT)
        except InfrastructureError as broken:
            return episode.finished(StopReason.INFRASTRUCTURE, str(broken))

    async def _believed(self, running: _Running, worker: EnvironmentWorker) -> tuple[Turn, Decision, float]:
        """The next decision, and the turn and seconds that it took; "done" only as far as the auditor believes it."""
        episode = running.episode
        takes_advice = isinstance(self.policy, AdvisedPolicy) and self.policy.takes_advice
        turn = Turn(running.slot, episode.observation, advice=await worker.advise() if takes_advice else None)
        spent = 0.0
        refused: list[Decision] = []
        rulings: list[Ruling] = []
        while True:
            decision, seconds = await self._decide(running, turn)
            spent += seconds
            for callback in self.callbacks:
                callback.decided(running.slot, episode, decision, seconds)
            if self.auditor is None or running.refusals == MAX_REFUSALS or not _says_done(turn, decision):
                return turn, _paid(decision, refused, rulings), spent
            began = time.perf_counter()
            ruling = await self.auditor.audit(episode.job.task, [*(seen for seen, _ in episode.past), turn.observation])
            spent += time.perf_counter() - began
            rulings.append(ruling)
            if not ruling.why:
                return turn, _paid(decision, refused, rulings), spent
            running.refusals += 1
            running.acting = None  # taken over anew, without the word that was not believed
            refused.append(decision)
            turn = replace(turn, audit=ruling.why)

    async def _decide(self, running: _Running, turn: Turn) -> tuple[Decision, float]:
        policy = self.policy
        if running.acting is not policy:
            job = running.episode.job
            await self._batcher.call(policy.begin, running.slot, job.task, job.attempt, tuple(running.episode.past))
            running.acting = policy
        if self._async_policy is None or self._async_policy[0] is not policy:
            self._async_policy = policy, isinstance(policy, AsyncPolicy)
            if isinstance(policy, AsyncPolicy) and policy not in self._asked:
                self._asked.append(policy)
        if not self._async_policy[1]:
            return await self._batcher.decide(policy, turn)
        assert isinstance(policy, AsyncPolicy)
        began = time.perf_counter()
        return await policy.decide(turn), time.perf_counter() - began


def _says_done(turn: Turn, decision: Decision) -> bool:
    declares = decision.action is not None and decision.action == turn.observation.finish
    return declares or (decision.action is None and decision.stop is StopReason.GAVE_UP)


def _paid(decision: Decision, refused: Sequence[Decision], rulings: Sequence[Ruling]) -> Decision:
    """The decision with what the refused ones before it have cost, and the rulings on them."""
    if not rulings:
        return decision
    decisions = (decision, *refused)
    return replace(
        decision,
        prompt_tokens=known_sum([*(each.prompt_tokens for each in decisions), *(ruling.tokens for ruling in rulings)]),
        completion_tokens=known_sum(each.completion_tokens for each in decisions),
        cost=known_sum([*(each.cost for each in decisions), *(ruling.cost for ruling in rulings)]),
    )


def _run(
    loop: asyncio.AbstractEventLoop,
    main: asyncio.Task[None],
    done: queue.SimpleQueue[Trajectory | BaseException | _Sign],
) -> None:
    asyncio.set_event_loop(loop)
    end: BaseException | _Sign = _Sign.END
    try:
        loop.run_until_complete(main)
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as group:
        end = group.exceptions[0]
    except BaseException as error:
        end = error
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        done.put(end)


def in_process(world: World, count: int) -> EnvironmentWorkers:
    """So many workers in this process."""

    @asynccontextmanager
    async def workers() -> AsyncIterator[Sequence[EnvironmentWorker]]:
        yield inline_workers(world, count)

    return workers
