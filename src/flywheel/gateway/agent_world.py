"""An agent of one's own as an environment: its requests are the observations, answers to them are the actions.

`async def run(task, client)` runs as it is, tools and all. Its client asks a server of this process, and whatever
policy plays answers: a teacher, a student, a challenger. What `run` returns says how the episode went.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import aiohttp.web

from flywheel.datasets.formats.chat_messages import messages_of, tools_of
from flywheel.environments.protocol import Observation, Transition
from flywheel.environments.tools import names_of
from flywheel.errors import InfrastructureError, named_reason
from flywheel.gateway.agents import Run, agent_client, agent_task, openai_package, outcome_of
from flywheel.gateway.placeholders import Placeholders
from flywheel.messages import Message, answer_of_action, text_of_inputs
from flywheel.named_objects import named_object
from flywheel.serving.answers import as_event_stream, choice, completion
from flywheel.trajectory import Task

_Result = TypeVar("_Result")
REQUEST_BYTES = 1 << 26


@dataclass(slots=True)
class _Request:
    """A request of the agent that waits for its answer."""

    body: dict[str, Any]
    answer: asyncio.Future[Message]


@dataclass(slots=True)
class _Episode:
    """A running agent. `conversation`: the messages of its last request; one that goes on begins with them."""

    private: Placeholders
    requests: asyncio.Queue[_Request] = field(default_factory=asyncio.Queue)
    running: asyncio.Task[Any] | None = None
    waiting: _Request | None = None
    conversation: list[Any] = field(default_factory=list)
    tools: str = "[]"
    calls: int = 0


class AgentEnvironment:
    """Plays one run of the agent at a time."""

    def __init__(self, world: AgentWorld) -> None:
        self._world = world
        self._episode: _Episode | None = None
        self._name = ""

    def reset(self, task: Task) -> Observation:
        """Start the agent; its first request is what there is to see, task included.

        Raises `InfrastructureError` for an agent that ends without asking anything.
        """
        self.close()
        self._name, self._episode = self._world.begin(task)
        seen = self._world.wait(self._next(self._episode))
        if isinstance(seen, Transition):
            raise InfrastructureError(f"the agent asked nothing: {seen.observation.text or 'its run was over at once'}")
        return replace(seen, instruction=self._episode.private.text(task.instruction))

    def step(self, action: str) -> Transition:
        """Answer what the agent asked, and wait for what it asks next, or for its end."""
        if self._episode is None or self._episode.waiting is None:
            raise InfrastructureError("the episode is over, or has not begun")
        seen = self._world.wait(self._next(self._episode, action))
        if isinstance(seen, Transition):
            self.close()
            return seen
        return Transition(seen, 0.0, 0.0, terminated=False, success=False)

    def close(self) -> None:
        """Stop the agent where it stands."""
        if self._episode is not None:
            self._world.end(self._name, self._episode)
            self._episode = None

    async def _next(self, episode: _Episode, action: str | None = None) -> Observation | Transition:
        if action is not None and episode.waiting is not None:
            answer = answer_of_action(action, names_of(episode.tools), episode.calls)
            episode.waiting.answer.set_result(episode.private.restored(answer))
            episode.waiting, episode.calls = None, episode.calls + 1
        assert episode.running is not None
        asked = asyncio.create_task(episode.requests.get())
        timeout = self._world.settings.timeout
        await asyncio.wait([asked, episode.running], return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
        if asked.done():
            return self._seen(episode, asked.result())
        asked.cancel()
        if not episode.running.done():
            return _ended({"success": False, "comment": f"the agent did nothing for {timeout:g} s"})
        return _ended(self._outcome(episode.running))

    def _seen(self, episode: _Episode, request: _Request) -> Observation:
        messages, before = request.body["messages"], episode.conversation
        goes_on = before and len(messages) > len(before) and messages[: len(before)] == before
        new = messages[len(before) + 1 :] if goes_on else messages
        episode.waiting, episode.conversation = request, messages
        inputs = [episode.private.message(message) for message in messages_of(new)]
        tools = episode.tools = tools_of(request.body.get("tools"), request.body.get("functions")) or "[]"
        return Observation(
            text_of_inputs(inputs), whole=True, tools=tools, messages=tuple(inputs), opens_task=not before
        )

    def _outcome(self, running: asyncio.Task[Any]) -> dict[str, Any]:
        openai = openai_package()
        try:
            outcome = dict(outcome_of(running.result()))
        except openai.APIConnectionError as error:
            raise InfrastructureError(named_reason(error)) from error
        except asyncio.CancelledError:
            raise InfrastructureError("the agent was stopped") from None
        except Exception as error:
            return {"success": False, "comment": f"the agent raised {named_reason(error)}"}
        if outcome.get("success") is None:
            raise InfrastructureError(f"{self._world.settings.run} returned no outcome: True, False or a score is due")
        return outcome


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an agent's world is opened with."""

    run: str
    model: str = ""
    timeout: float = 600.0
    private: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()


class AgentWorld:
    """A server that the agents' clients ask, in a thread of its own, and the environments in which they run."""

    def __init__(self, settings: AgentSettings) -> None:
        openai_package()
        self.settings = settings
        self._run: Run = named_object(settings.run)
        self._numbers = itertools.count()
        self._episodes: dict[str, _Episode] = {}
        self._environments: list[AgentEnvironment] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agents", daemon=True)
        self._thread.start()
        self._runner, self._url = self.wait(self._serve())

    def wait(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run something beside the agents, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def environments(self, count: int) -> Sequence[AgentEnvironment]:
        while len(self._environments) < count:
            self._environments.append(AgentEnvironment(self))
        return self._environments[:count]

    def begin(self, task: Task) -> tuple[str, _Episode]:
        """Start a run of the agent, and its name."""
        name = str(next(self._numbers))
        episode = _Episode(Placeholders(self.settings.private, self.settings.redact))
        self._episodes[name] = episode
        self.wait(self._start(name, episode, task))
        return name, episode

    def end(self, name: str, episode: _Episode) -> None:
        """Stop a run, if it still runs, and forget it."""
        self._episodes.pop(name, None)
        self.wait(_stop(episode))

    def close(self) -> None:
        for environment in self._environments:
            environment.close()
        self.wait(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, name: str, episode: _Episode, task: Task) -> None:
        given = agent_task(task, self.settings.model)

        async def run() -> Any:
            url = f"{self._url}/s/{name}/v1"
            async with agent_client(url, "local", None, max_retries=0) as client:
                return await self._run(given, client)

        episode.running = asyncio.create_task(run())

    async def _serve(self) -> tuple[aiohttp.web.AppRunner, str]:
        app = aiohttp.web.Application(client_max_size=REQUEST_BYTES)
        app.router.add_post("/s/{name}/v1/chat/completions", self._answer)
        runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _answer(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        episode = self._episodes.get(request.match_info["name"])
        if episode is None:
            return _over()
        try:
            body = await request.json()
            messages_of(body["messages"])
        except (ValueError, KeyError, TypeError) as error:
            return aiohttp.web.json_response({"error": {"message": f"messages: {error}"}}, status=400)
        asked = _Request(body, asyncio.get_running_loop().create_future())
        await episode.requests.put(asked)
        try:
            message = await asked.answer
        except asyncio.CancelledError:
            return _over()
        answer = completion([choice(message)], str(body.get("model") or self.settings.model))
        if body.get("stream"):
            return aiohttp.web.Response(body=as_event_stream(answer), content_type="text/event-stream")
        return aiohttp.web.json_response(answer)


def _over() -> aiohttp.web.Response:
    return aiohttp.web.json_response({"error": {"message": "this run of the agent is over"}}, status=404)


async def _stop(episode: _Episode) -> None:
    """End a run, and the requests of it that still wait."""
    left = [episode.waiting] if episode.waiting else []
    while not episode.requests.empty():
        left.append(episode.requests.get_nowait())
    for request in left:
        request.answer.cancel()
    if episode.running is not None:
        episode.running.cancel()
        with suppress(BaseException):
            await episode.running


def _ended(outcome: dict[str, Any]) -> Transition:
    solved = bool(outcome["success"])
    score = float(outcome.get("score", solved))
    seen = Observation(str(outcome.get("comment", "")), whole=True)
    return Transition(seen, score, 1.0 if solved else min(score, 0.99), terminated=True, success=solved)


@contextmanager
def open_world(parameters: str) -> Iterator[AgentWorld]:
    """The agent's world. `parameters`: `AgentSettings` as JSON."""
    settings = json.loads(parameters)
    lists = {name: tuple(settings.get(name, ())) for name in ("private", "redact")}
    world = AgentWorld(AgentSettings(**{**settings, **lists}))
    try:
        yield world
    finally:
        world.close()
