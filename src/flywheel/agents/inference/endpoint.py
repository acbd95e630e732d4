"""Chat models behind OpenAI-compatible servers: one question, or a stream of turns with limits and accounts."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flywheel.agents.inference.replies import count_of, error_of, known_count, reply_of
from flywheel.config.agents import ChatConfig
from flywheel.errors import (
    ConfigError,
    FlywheelError,
    InfrastructureError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
)
from flywheel.messages import ToolCall

if TYPE_CHECKING:
    from openai import AsyncOpenAI, BadRequestError
    from openai.types.chat import ChatCompletion

PASSING = frozenset({408, 409, 429})
"""Refusals that pass."""
STANDING = frozenset({401, 403, 404})
"""Refusals that the next request will meet too; other ones are about one request, as one that is too long."""
OPTIONAL = ("temperature", "seed", "logprobs", "top_logprobs")
"""Options that an answer can do without, where a server refuses them by name."""
UNSUPPORTED = re.compile(r"(?i)unsupported|not supported|does not support|unknown|unrecognized|not permitted")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before a request is sent again whose answer, of status 200, held an error."""
EXCERPT = 200


@dataclass(frozen=True, slots=True)
class Server:
    """Where a model answers; `key` names the environment variable with its API key, `role` says who asks."""

    role: str
    base_url: str
    model: str
    key: str
    timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with what it took."""

    text: str
    model: str
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    logprobs: tuple[float, ...] | None = None
    top_tokens: tuple[tuple[str, ...], ...] | None = None
    top_logprobs: tuple[tuple[float, ...], ...] | None = None

    @property
    def arguments(self) -> Mapping[str, Any] | None:
        """What its first tool call hands over; empty where that cannot be read, None where there is no call."""
        if not self.calls:
            return None
        try:
            parsed = json.loads(self.calls[0].arguments)
        except (ValueError, RecursionError):
            return {}
        return parsed if isinstance(parsed, dict) else {}


def ask(server: Server, system: str, text: str, schema: type[BaseModel], *, temperature: float, seed: int) -> str:
    """The model's words, which may fit the schema or not.

    Raises `InfrastructureError` if the server fails, `ConfigError` if it refuses.
    """
    openai = _openai(server)
    json_schema = {"name": schema.__name__.lower(), "strict": True, "schema": schema.model_json_schema()}
    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    format: Any = {"type": "json_schema", "json_schema": json_schema}
    try:
        with openai.OpenAI(
            base_url=server.base_url, api_key=os.environ.get(server.key, "none"), timeout=server.timeout
        ) as client:
            reply = client.chat.completions.create(
                model=server.model, messages=messages, temperature=temperature, seed=seed, response_format=format
            )
    except openai.OpenAIError as error:
        raise explained(server, error) from error
    if problem := error_of(reply):
        raise _failure(server, *problem)
    return reply_of(reply.choices[0].message).text if reply.choices else ""


def models_of(settings: ChatConfig) -> list[str]:
    """The models that a server says it has; none where it does not say. Raises `InfrastructureError` without one."""
    server = Server("chat server", settings.base_url, settings.model, settings.key, timeout=5.0)
    openai = _openai(server)
    key = os.environ.get(settings.key, "none")
    try:
        with openai.OpenAI(base_url=settings.base_url, api_key=key, timeout=5.0, max_retries=0) as client:
            return [model.id for model in client.models.list()]
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise explained(server, error) from error
        return []
    except openai.OpenAIError as error:
        raise explained(server, error) from error


class Endpoint:
    """A server that is asked turn by turn, by many episodes at once, with back-off, pace and accounts.

    What passes (a lost connection, a time-out, a rate limit, a server's error) is tried again by OpenAI's client, which
    heeds `Retry-After`; only then `InfrastructureError` is raised. A refusal that stands is a `ConfigError`.
    """

    def __init__(self, role: str, settings: ChatConfig) -> None:
        if not settings.model:
            raise ConfigError(f'the {role} needs model = "…", the name under which the server knows it')
        self._server = Server(role, settings.base_url, settings.model, settings.key, settings.timeout)
        _openai(self._server)
        self._settings = settings
        self._client: AsyncOpenAI | None = None
        self._token_limit = "max_tokens" if settings.token_limit == "auto" else settings.token_limit
        self._unsupported = {"temperature"} if settings.temperature == "default" else set[str]()
        """Options that are left out."""
        self._turn = 0.0
        """Loop time from which the next request may be sent."""

    async def complete(self, messages: Any, **options: Any) -> Answer:
        """The answer to a dialogue, a list of messages as the API has them."""
        openai = _openai(self._server)
        from openai.types.chat import ChatCompletion

        settings = self._settings
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=settings.base_url,
                api_key=os.environ.get(settings.key, "none"),
                timeout=settings.timeout,
                max_retries=settings.retries,
                http_client=openai.DefaultAioHttpClient(),
            )
        if settings.top_logprobs:
            options |= {"logprobs": True, "top_logprobs": settings.top_logprobs}
        attempt = 0
        while True:
            await self._pace()
            sent = {name: value for name, value in options.items() if name not in self._unsupported}
            sent[self._token_limit] = settings.max_tokens
            body = {"model": settings.model, "messages": messages, **sent}
            try:  # `create` would check the type of every message first, which costs more than all the rest
                reply = await self._client.post("/chat/completions", body=body, cast_to=ChatCompletion)
                problem = error_of(reply) or (None if reply.choices else (0, "an answer without choices"))
                if problem is None:
                    return _answer(reply, settings)
            except openai.BadRequestError as error:
                if not self._drop_unsupported(error, sent):
                    raise explained(self._server, error) from error
                continue
            except openai.OpenAIError as error:
                raise explained(self._server, error) from error
            except (AttributeError, TypeError, ValueError) as error:
                raise UnreachableError(
                    f"the {self._server.role} at {settings.base_url} does not speak the OpenAI API: {error}"
                ) from error
            failure = _failure(self._server, *problem)
            if isinstance(failure, RefusedError) or attempt == settings.retries:
                raise failure
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
            attempt += 1

    def _drop_unsupported(self, error: BadRequestError, sent: Mapping[str, Any]) -> bool:
        """Stop sending options that the server names as unsupported. Would the next request differ from this one?"""
        message = str(error)
        if error.param is None and not UNSUPPORTED.search(message):
            return False
        named = {
            name for name in (*OPTIONAL, "max_tokens") if name == error.param or re.search(rf"\b{name}\b", message)
        }
        if "max_tokens" in named & sent.keys() and self._settings.token_limit == "auto":
            self._token_limit = "max_completion_tokens"
        self._unsupported |= named & set(OPTIONAL)
        return bool(sent.keys() & self._unsupported) or self._token_limit not in sent

    async def close(self) -> None:
        """Let go of the connections; the next question opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _pace(self) -> None:
        if self._settings.per_minute:
            now = asyncio.get_running_loop().time()
            due = max(now, self._turn)
            self._turn = due + 60.0 / self._settings.per_minute
            await asyncio.sleep(due - now)


def _answer(reply: ChatCompletion, settings: ChatConfig) -> Answer:
    choice, usage = reply.choices[0], reply.usage
    read = known_count(usage.prompt_tokens) if usage else None
    written = known_count(usage.completion_tokens) if usage else None
    details = usage.prompt_tokens_details if usage else None
    cached = count_of(details.cached_tokens) if details else 0
    tokens = (choice.logprobs.content or None) if choice.logprobs else None
    message = reply_of(choice.message)
    return Answer(
        text=message.text,
        model=reply.model or settings.model,
        thought=message.thought,
        calls=message.calls,
        prompt_tokens=read,
        completion_tokens=written,
        cost=_cost(settings, read, min(cached, read or 0), written),
        logprobs=tuple(token.logprob for token in tokens) if tokens else None,
        top_tokens=tuple(tuple(top.token for top in token.top_logprobs) for token in tokens) if tokens else None,
        top_logprobs=tuple(tuple(top.logprob for top in token.top_logprobs) for token in tokens) if tokens else None,
    )


def _cost(settings: ChatConfig, read: int | None, cached: int, written: int | None) -> float | None:
    """By the prices; None where a price or a count is unknown."""
    prompt, completion = settings.price_prompt, settings.price_completion
    if read is None or written is None or prompt is None or completion is None:
        return None
    cheap = prompt if settings.price_cached is None else settings.price_cached
    return ((read - cached) * prompt + cached * cheap + written * completion) / 1e6


def _failure(server: Server, code: int, message: str) -> InfrastructureError:
    """What an error means that came with status 200, by the code in it: the request is refused, or the server fails."""
    refused = 400 <= code < 500 and code not in PASSING
    kind = RefusedError if refused else UnreachableError
    return kind(f"the {server.role} at {server.base_url} answers with an error: {message[:EXCERPT]}")


def explained(server: Server, error: Exception) -> FlywheelError:
    """What an error of OpenAI's client means: the server fails, or it refuses."""
    status = getattr(error, "status_code", None)
    if status is None:
        return UnreachableError(f"the {server.role} at {server.base_url} does not answer: {type(error).__name__}")
    if status in PASSING or status >= 500:
        return UnreachableError(f"the {server.role} at {server.base_url} fails: HTTP {status}")
    if status not in STANDING:
        detail = " ".join(str(getattr(error, "message", error)).split())[:EXCERPT]
        return RefusedError(f"the {server.role} at {server.base_url} refuses a request: HTTP {status}: {detail}")
    return ConfigError(
        f"the {server.role} at {server.base_url} refuses: HTTP {status}; check base_url, model and {server.key}"
    )


def _openai(server: Server) -> Any:
    try:
        import openai
    except ImportError as error:
        raise PrerequisiteError(f"the {server.role} needs openai: pip install 'trajectory-flywheel[chat]'") from error
    return openai
