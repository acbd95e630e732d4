"""Calls that a student answers in the model's place, or beside it as a shadow.

The student learned from placeholders, and is asked with those of the conversation; in its answer they are exchanged for
what they stand for. What it cannot or should not answer goes on to the model's server, and the record says why.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flywheel.datasets.formats.chat_messages import messages_of
from flywheel.environments.tools import CallError, Toolbox
from flywheel.errors import ConfigError, named_reason
from flywheel.gateway.forwarding import SESSION_HEADER, Forwarded
from flywheel.gateway.placeholders import Placeholders
from flywheel.gateway.recording import Recording
from flywheel.gateway.routing import Route
from flywheel.messages import Message, openai_message
from flywheel.serving.answers import as_event_stream, choice, completion

Json = dict[str, Any]
ANSWERED_BY = b"x-flywheel-answered-by"
_PASSED = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "stop",
    "max_tokens",
    "max_completion_tokens",
)
"""What a student is told beside the messages. It decides as it was evaluated: sampling options are the teacher's."""
_REFUSED = {
    "n": (None, 1),
    "logprobs": (None, False),
    "functions": (None,),
}
"""What students are not asked for, but for these values."""


_TEXT = ("text", "input_text")


class NoAnswerError(Exception):
    """Why the student does not answer."""


@dataclass(frozen=True, slots=True)
class Student:
    """A student behind a server, for one conversation. `key`: what its server wants to be brought; `private`: patterns
    of what is replaced by placeholders."""

    client: aiohttp.ClientSession
    url: str
    key: str
    route: Route
    private: tuple[str, ...]
    redact: tuple[str, ...]

    async def answer(self, request: Mapping[str, Any], session: str) -> Json:
        """A `chat.completion`, with what placeholders stand for in it. Raises `NoAnswerError`."""
        if asked := next((name for name, allowed in _REFUSED.items() if request.get(name) not in allowed), None):
            raise NoAnswerError(f"asks for {asked}")
        placeholders = Placeholders(self.private, self.redact)
        try:
            messages = await asyncio.to_thread(_placed, request, placeholders)
            answered = await self._ask({**_passed(request), "messages": messages, "user": session})
            (chosen,) = answered["choices"]
            (message,) = messages_of([chosen["message"]])
            reason = str(chosen["finish_reason"])
        except TimeoutError as error:
            raise NoAnswerError(f"no answer in {self.route.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswerError(named_reason(error)) from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise NoAnswerError(f"no answer that can be read: {error}") from error
        known = answered.get("flywheel") or {}
        if known.get("confidence", 1.0) < self.route.confidence:
            raise NoAnswerError("not sure enough")
        if not message.content and not message.tool_calls:
            raise NoAnswerError("had no answer")
        _check_calls(message, request)
        metadata = {**known, "student": str(answered.get("model") or self.route.student)}
        answer = choice(placeholders.restored(message), finish_reason=reason)
        return completion([answer], metadata["student"], answered.get("usage"), metadata)

    async def _ask(self, body: Json) -> Json:
        timeout = aiohttp.ClientTimeout(total=self.route.timeout)
        asked = {**body, "model": self.route.student}
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        url = f"{self.url}/chat/completions"
        async with self.client.post(url, json=asked, headers=headers, timeout=timeout) as reply:
            answered = json.loads(await reply.read())
            if reply.status != 200 or not isinstance(answered, dict):
                raise NoAnswerError(f"HTTP status {reply.status}")
            return answered


class Answered(Response):
    """The student's answer, kept before it is sent; where there is none, the model's server's."""

    def __init__(self, student: Student, recording: Recording, upstream: Forwarded) -> None:
        self._student, self._recording, self._upstream = student, recording, upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        recording = self._recording
        try:
            answer = await self._student.answer(recording.request, recording.place.session)
        except NoAnswerError as error:
            recording.notes["fallback"] = str(error)
            await self._upstream(scope, receive, send)
            return
        except BaseException:
            recording.done()
            raise
        try:
            body = json.dumps(answer).encode()
            await recording.keep(200, body, streamed=False)
        finally:
            recording.done()
        media_type = "application/json"
        if recording.request.get("stream"):
            options = recording.request.get("stream_options") or {}
            body = as_event_stream(answer, include_usage=bool(options.get("include_usage")))
            media_type = "text/event-stream"
        response = Response(body, media_type=media_type)
        response.raw_headers.append((SESSION_HEADER, recording.place.session.encode()))
        response.raw_headers.append((ANSWERED_BY, answer["model"].encode()))
        await response(scope, receive, send)


class Shadowed(Response):
    """The model's server's answer, while a student is asked the same; the record says what it would have answered."""

    def __init__(self, student: Student, recording: Recording, upstream: Forwarded) -> None:
        self._student, self._recording, self._upstream = student, recording, upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asking = asyncio.create_task(self._student.answer(self._recording.request, self._recording.place.session))
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # told by the record, or by nobody
        self._recording.shadow = asking
        try:
            await self._upstream(scope, receive, send)
        finally:
            asking.cancel()


def _passed(request: Mapping[str, Any]) -> Json:
    return {name: request[name] for name in _PASSED if request.get(name) is not None}


def _placed(request: Mapping[str, Any], placeholders: Placeholders) -> list[Json]:
    """The conversation with placeholders in place of what is private."""
    return [openai_message(placeholders.message(message)) for message in _text_messages(request)]


def _text_messages(request: Mapping[str, Any]) -> list[Message]:
    contents = [raw.get("content") for raw in request["messages"] if isinstance(raw, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    if any(not isinstance(part, dict) or part.get("type") not in _TEXT for part in parts):
        raise NoAnswerError("holds more than text")
    return messages_of(request["messages"])


def _check_calls(message: Message, request: Mapping[str, Any]) -> None:
    """Raises `NoAnswerError` for a call that the tools do not allow."""
    try:
        toolbox = Toolbox(request.get("tools") or [])
        for call in message.tool_calls:
            toolbox.arguments(call)
    except (ConfigError, CallError, KeyError, TypeError) as error:
        raise NoAnswerError(f"an invalid call: {error}") from error
