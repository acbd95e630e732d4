"""Agents that Flywheel runs itself: `async def run(task, client)`, whatever framework it uses.

The client is OpenAI's; its calls go through a gateway of this command, so that every run is one recorded session of its
task, and what `run` returns is reported as its outcome.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.environments.task_lists import read_tasks
from flywheel.errors import ConfigError, PrerequisiteError, named_reason
from flywheel.gateway.app import Gateway
from flywheel.gateway.mover import move
from flywheel.gateway.server import in_background
from flywheel.gateway.sessions import KEY
from flywheel.gateway.spool import connected, sessions
from flywheel.gateway.trajectories import OTHER_THREADS, RECORDED, task_of_session
from flywheel.named_objects import named_object
from flywheel.trajectory import Split, Task, digest


@dataclass(frozen=True, slots=True)
class AgentTask:
    """A task as an agent gets it. `data`: what else its row says; `model`: whom to ask."""

    id: str
    instruction: str
    data: Any
    model: str


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

    How the runs ended: succeeded, failed, unknown, broken (the model's server failed, after all retries). Raises
    `ConfigError` for an agent that is not there, `PrerequisiteError` without the extra `chat`.
    """
    if not config.agent.run:
        raise ConfigError('which agent? [agent] run = "my_agent:run"')
    run: Run = named_object(config.agent.run)
    _openai()
    tried = _tried(config, lake)
    jobs = [(task, *tried.get(task.task_id, (0, False))) for task in tasks]
    with in_background(config) as (url, gateway):
        waiting = [(task, attempt) for task, attempt, has_outcome in jobs if not has_outcome]
        ended = asyncio.run(_run_all(run, config, url, gateway, waiting, progress))
    with connected(config.data_dir) as spool:
        spool.execute("update session set closed_at = last where closed_at is null and task is not null")
        move(config, lake, spool)
    return ended


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


async def _run_all(
    run: Run,
    config: Config,
    url: str,
    gateway: Gateway,
    jobs: Sequence[tuple[Task, int]],
    progress: Callable[[int], None],
) -> Counter[str]:
    places, ended = asyncio.Semaphore(config.agent.parallel), Counter[str]()
    async with httpx.AsyncClient(base_url=url, timeout=60) as reporting:

        async def finish(task: Task, attempt: int) -> None:
            async with places:
                outcome = await _attempt(run, config, url, gateway, reporting, task, attempt)
                for again in range(config.agent.retries if outcome.get("broken") else 0):
                    outcome = await _attempt(run, config, url, gateway, reporting, task, attempt + again + 1)
                    if not outcome.get("broken"):
                        break
            success = outcome.get("success")
            ended["broken" if outcome.get("broken") else _RESULTS[success]] += 1
            progress(1)

        await asyncio.gather(*(finish(task, attempt) for task, attempt in jobs))
    return ended


_RESULTS = {None: "unknown", True: "succeeded", False: "failed"}


async def _attempt(
    run: Run, config: Config, url: str, gateway: Gateway, reporting: httpx.AsyncClient, task: Task, attempt: int
) -> Mapping[str, Any]:
    """One run and its outcome, reported unless nobody knows; `broken` where the model's server failed."""
    session = digest("session", task.task_id, attempt, size=16)
    declared = {name: value for name, value in asdict(task).items() if name not in ("environment", "parameters")}
    (await reporting.put(f"/sessions/{session}", json={**declared, "attempt": attempt})).raise_for_status()
    openai = _openai()
    data = json.loads(task.data) if task.data else None
    given = AgentTask(task.name, task.instruction, data, config.agent.model)
    client = openai.AsyncOpenAI(base_url=url, api_key=f"{KEY}{session}", timeout=config.gateway.timeout)
    outcome: Mapping[str, Any]
    try:
        async with client, asyncio.timeout(config.agent.timeout):
            outcome = _outcome(await run(given, client))
    except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
        outcome = {"broken": True, "comment": named_reason(error)}
    except TimeoutError:
        outcome = {"success": False, "comment": f"took longer than {config.agent.timeout:g} s"}
    except Exception as error:
        outcome = {"success": False, "comment": f"the agent raised {named_reason(error)}"}
    if not outcome.get("broken") and outcome:
        reply = await reporting.post(f"/sessions/{session}/outcome", json={"who": config.agent.run, **outcome})
        reply.raise_for_status()
    gateway.sessions.end(session)
    return outcome


def _outcome(returned: Any) -> Mapping[str, Any]:
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


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise PrerequisiteError("agents get OpenAI's client: pip install 'trajectory-flywheel[chat]'") from None
    return openai
