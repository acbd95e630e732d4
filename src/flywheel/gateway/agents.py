"""Agents that Flywheel runs itself: `async def run(task, client)`, whatever framework it uses.

The client is OpenAI's; its calls go through a gateway of this command, so that every run is one recorded session of its
task, and what `run` returns is reported as its outcome.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import httpx

from flywheel.arrow import batched
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.environments.task_lists import read_tasks
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError, named_reason
from flywheel.gateway.mover import move
from flywheel.gateway.server import in_background
from flywheel.gateway.sessions import KEY
from flywheel.gateway.spool import connected, sessions
from flywheel.gateway.trajectories import OTHER_THREADS, RECORDED, task_of_session
from flywheel.named_objects import named_object
from flywheel.runtime.workers import Worker, open_workers
from flywheel.trajectory import Split, Task, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentTask:
    """A task as an agent gets it. `data`: what else its row says; `model`: whom to ask."""

    id: str
    instruction: str
    data: Any
    model: str


AgentJob = tuple[Task, int]
"""A task, and which attempt at it."""
Run = Callable[[AgentTask, Any], Awaitable[Any]]
"""(task, client) → None where nobody knows, did it succeed, a score from 0 to 1, or an outcome as a mapping."""


def agent_tasks(config: Config, split: Split | None, start: int, count: int) -> list[Task]:
    """The tasks [start, start + count) of the config's list, of one split or of all. Raises `ConfigError` for none."""
    if not config.tasks.source:
        raise ConfigError('an agent needs tasks: [tasks] source = "tasks.jsonl"')
    shares = {Split.DEV: config.tasks.dev, Split.TEST: config.tasks.test}
    listed = read_tasks(config.tasks.source, config.gateway.environment, "{}", config.tasks.columns, shares)
    tasks = [task for which in ([split] if split else Split) for task in listed[which]]
    if not tasks[start : start + count]:
        raise ConfigError(f"the list has {len(tasks)} {split or ''} tasks, and those from {start} on were asked for")
    return tasks[start : start + count]


def run_agent(
    config: Config, lake: Lake, tasks: Sequence[Task], progress: Callable[[int], None] = lambda done: None
) -> Counter[str]:
    """Run the agent at every task that has no outcome yet, and bring what was recorded into the lake.

    How the runs ended: succeeded, failed, unknown, broken (the model's server failed, or the agent's process died,
    after all retries). Raises `ConfigError` for an agent that is not there, `PrerequisiteError` without the extra
    `chat`.
    """
    if not config.agent.run:
        raise ConfigError('which agent? [agent] run = "my_agent:run"')
    named_object(config.agent.run)
    openai_package()
    tried = _tried(config, lake)
    jobs = [(task, *tried.get(task.task_id, (0, False))) for task in tasks]
    waiting = [(task, attempt) for task, attempt, has_outcome in jobs if not has_outcome]
    ended = Counter[str]()
    with (
        in_background(config) as (url, gateway),
        open_workers(config.agent.processes, AgentRuns, config, url) as workers,
    ):
        for results in _finished(workers, waiting, -(-config.agent.parallel // config.agent.processes)):
            for session, result in results:
                gateway.sessions.end(session)
                ended[result] += 1
            progress(len(results))
    with connected(config.data_dir) as spool:
        spool.execute("update session set closed_at = last where closed_at is null and task is not null")
        move(config, lake, spool)
    return ended


def _finished(workers: Sequence[Worker], jobs: Sequence[AgentJob], size: int) -> Iterator[list[tuple[str, str]]]:
    """(session, how it ended) of every job, as they come. Those that were running when a process died run once more,
    alone, so that the one that kills it takes no other along."""
    waiting, again = deque[Sequence[AgentJob]](batched(jobs, size)), set[str]()
    busy: dict[Future[Any], tuple[Worker, Sequence[AgentJob]]] = {}
    idle = deque(workers)
    while waiting or busy:
        while idle and waiting:
            worker, batch = idle.popleft(), waiting.popleft()
            busy[worker.submit("run", batch)] = worker, batch
        for call in wait(busy, return_when=FIRST_COMPLETED).done:
            worker, batch = busy.pop(call)
            idle.append(worker)
            try:
                yield call.result()
            except InfrastructureError as error:
                log.warning("%s", error)
                lost = [(session_of(*job), "broken") for job in batch if job[0].task_id in again]
                waiting.extend(((task, attempt + 1),) for task, attempt in batch if task.task_id not in again)
                again |= {task.task_id for task, _ in batch}
                yield lost


def _tried(config: Config, lake: Lake) -> dict[str, tuple[int, bool]]:
    """Task → (its next attempt, has one of them an outcome?)."""
    rows = lake.sql(
        f"""select task_id, max(attempt) + 1 as next, bool_or(reported_at is not null) as has_outcome from trajectories
            where environment = {quoted(config.gateway.environment)} and purpose = {quoted(RECORDED)}
              and attempt < {OTHER_THREADS} group by task_id"""
    ).to_pylist()
    tried = {row["task_id"]: (row["next"], row["has_outcome"]) for row in rows}
    with connected(config.data_dir) as spool:
        for session in sessions(spool, "task is not null and trajectory_id is null"):
            task, attempt = task_of_session(session, config)
            before, has_outcome = tried.get(task.task_id, (0, False))
            tried[task.task_id] = max(before, attempt + 1), has_outcome
    return tried


class AgentRuns:
    """Runs of the agent, many at once, in the process in which this is made."""

    def __init__(self, config: Config, url: str) -> None:
        self._config, self._url = config, url
        self._run: Run = named_object(config.agent.run)

    def run(self, jobs: Sequence[AgentJob]) -> list[tuple[str, str]]:
        """(session, how it ended) of each."""
        return asyncio.run(self._all(jobs))

    async def _all(self, jobs: Sequence[AgentJob]) -> list[tuple[str, str]]:
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as reporting:
            return list(await asyncio.gather(*(self._finish(reporting, task, attempt) for task, attempt in jobs)))

    async def _finish(self, reporting: httpx.AsyncClient, task: Task, attempt: int) -> tuple[str, str]:
        for again in range(1 + self._config.agent.retries):
            session, outcome = await self._attempt(reporting, task, attempt + again)
            if not outcome.get("broken"):
                return session, _RESULTS[outcome.get("success")]
        return session, "broken"

    async def _attempt(self, reporting: httpx.AsyncClient, task: Task, attempt: int) -> tuple[str, Mapping[str, Any]]:
        """One run and its outcome, reported unless nobody knows; `broken` where the model's server failed."""
        settings, session, openai = self._config.agent, session_of(task, attempt), openai_package()
        declared = {name: value for name, value in asdict(task).items() if name not in ("environment", "parameters")}
        declared |= {"attempt": attempt, "max_tokens": settings.max_tokens, "max_cost": settings.max_cost}
        (await reporting.put(f"/sessions/{session}", json=declared)).raise_for_status()
        given = agent_task(task, settings.model)
        client = agent_client(self._url, f"{KEY}{session}", self._config.gateway.timeout)
        outcome: Mapping[str, Any]
        try:
            async with client, asyncio.timeout(settings.timeout):
                outcome = outcome_of(await self._run(given, client))
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            outcome = {"broken": True, "comment": named_reason(error)}
        except TimeoutError:
            outcome = {"success": False, "comment": f"took longer than {settings.timeout:g} s"}
        except Exception as error:
            outcome = {"success": False, "comment": f"the agent raised {named_reason(error)}"}
        if not outcome.get("broken") and outcome:
            reply = await reporting.post(f"/sessions/{session}/outcome", json={"who": settings.run, **outcome})
            reply.raise_for_status()
        return session, outcome


_RESULTS = {None: "unknown", True: "succeeded", False: "failed"}


def session_of(task: Task, attempt: int) -> str:
    """The name of the session that an attempt at a task is."""
    return digest("session", task.task_id, attempt, size=16)


def agent_task(task: Task, model: str) -> AgentTask:
    """A task as the agent gets it."""
    data = json.loads(task.data) if task.data else None
    return AgentTask(task.name or task.task_id, task.instruction, data, model)


def outcome_of(returned: Any) -> Mapping[str, Any]:
    """What an agent's `run` returned, as an outcome. Raises `TypeError` for what is none."""
    if returned is None:
        return {}
    if isinstance(returned, bool):
        return {"success": returned}
    if isinstance(returned, int | float) and 0 <= returned <= 1:
        return {"score": float(returned), "success": returned >= 1}
    if isinstance(returned, Mapping) and returned and returned.keys() <= {"success", "score", "comment"}:
        return dict(returned)
    raise TypeError(f"{returned!r}, which is no outcome: None, True or False, a score from 0 to 1, or a mapping")


def agent_client(url: str, key: str, timeout: float | None, **options: Any) -> Any:
    """OpenAI's client for one run. Runs share what makes it slow to make, the certificates; each may close its own."""
    openai = openai_package()
    http = openai.DefaultAsyncHttpxClient(verify=_certificates())
    return openai.AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, http_client=http, **options)


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


def openai_package() -> Any:
    """OpenAI's client library. Raises `PrerequisiteError` where it is not installed."""
    try:
        import openai
    except ImportError:
        raise PrerequisiteError("agents get OpenAI's client: pip install 'trajectory-flywheel[chat]'") from None
    return openai
