"""Requests as OpenAI's API has them: null means not given, and what is not supported is refused by name."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.responses import JSONResponse

from flywheel.agents.policy import Sampling
from flywheel.environments.tools import Toolbox
from flywheel.errors import ConfigError
from flywheel.text import printable, printable_line, strict_json

MAX_TOKENS = 4096
MAX_ANSWERS = 16
MAX_BIASES = 1024
COLDEST = 0.01
"""The lowest temperature above 0."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_Request = TypeVar("_Request", bound=BaseModel)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "min_p": (0,),
    "top_k": (-1, 0),
    "repetition_penalty": (1,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "logit_bias": ({},),
}
"""Options that are not supported, with the values under which they ask for nothing."""
_IGNORED = frozenset({"metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "verbosity"})
"""Options that say nothing about the answer."""
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Answers = Annotated[int, Field(ge=1, le=MAX_ANSWERS)]
Stop = Annotated[str, Field(max_length=200)]
Stops = Stop | Annotated[list[Stop], Field(max_length=16)]
Token = Annotated[int, Field(strict=True, ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class RequestError(ValueError):
    """A request that is refused; the message names what is wrong with it."""


def _without_nulls(data: Any) -> Any:
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return _without_nulls(data)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


class _CommonRequest(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=200)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    user: str = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {name: value for name, value in _without_nulls(data).items() if name not in _IGNORED}
        for name in [name for name in kept if name in _NEUTRAL and name not in cls.model_fields]:
            value = kept.pop(name)
            if not any(value == neutral and _is_bool(value) is _is_bool(neutral) for neutral in _NEUTRAL[name]):
                raise ValueError(f"{name}: not supported here; leave it out")
        return kept


class CompletionRequest(_CommonRequest):
    """A request to `/v1/completions`; the last three are vLLM's."""

    prompt: str | list[Token] | list[str] | list[list[Token]]
    max_tokens: int = Field(default=16, ge=0, le=MAX_TOKENS)
    temperature: Temperature = 0.0
    seed: Seed = 0
    n: Answers = 1
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    stop: Stops = ""
    logit_bias: dict[int, Bias] = Field(default_factory=dict, max_length=MAX_BIASES)
    allowed_token_ids: list[Token] = Field(default_factory=list)
    stop_token_ids: list[Token] = Field(default_factory=list, max_length=64)
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs: a prompt's log-probabilities are not supported")
        _check_variety(self.n, self.temperature)
        if self.stream and (self.echo or self.stop or self.n > 1 or len(self.prompts) > 1):
            raise ValueError("stream: not with echo, stop, n or several prompts")
        if not 0 < len(self.prompts) * self.n <= MAX_ANSWERS:
            raise ValueError(f"prompt: 1 to {MAX_ANSWERS} answers of one request, n of each prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]
        return list(cast(list[str] | list[list[int]], self.prompt))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts before which an answer ends."""
        return _stop_strings(self.stop)


class Message(BaseModel):
    """One message of a chat request. A student reads text: pictures and sound are refused."""

    model_config = ConfigDict(extra="forbid")
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str = ""
    tool_call_id: str = ""
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    refusal: str = ""
    reasoning: str = ""
    reasoning_content: str = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        empty = {"annotations"} if data.get("annotations") == [] else set()
        return {name: value for name, value in _without_nulls(data).items() if name not in empty}

    @field_validator("role")
    @classmethod
    def _known(cls, role: str) -> str:
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise ValueError("must be system, developer, user, assistant or tool")
        return role

    @field_validator("tool_calls")
    @classmethod
    def _are_calls(cls, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(not isinstance((call.get("function") or {}).get("name"), str) for call in calls):
            raise ValueError("a call needs a function with a name")
        return calls

    @field_validator("content")
    @classmethod
    def _is_text(cls, content: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]] | None:
        for part in content if isinstance(content, list) else ():
            if not isinstance(part.get("text"), str) or part.get("type", "text") not in ("text", "input_text"):
                raise ValueError(f"a student reads text only, no part of type {part.get('type')}")
        return content

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part["text"] for part in self.content)
        return self.content or ""


class JsonSchema(BaseModel):
    """The schema of an answer; its name and whether it is strict change nothing: it always holds."""

    model_config = ConfigDict(extra="forbid")
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer in text looks like."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, and to no other")
        return self

    @property
    def schema_text(self) -> str:
        """The JSON Schema of an answer, or nothing for any text."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return "" if self.type == "text" else json.dumps({"type": "object"})


class ChatRequest(_CommonRequest):
    """A request to `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    response_format: ResponseFormat = ResponseFormat()
    temperature: Temperature | None = None
    seed: Seed | None = None
    n: Answers = 1
    stop: Stops = ""
    logprobs: bool = False
    max_tokens: int = Field(default=MAX_TOKENS, ge=1)
    max_completion_tokens: int = Field(default=MAX_TOKENS, ge=1)

    @field_validator("tools")
    @classmethod
    def _are_tools(cls, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            Toolbox(tools)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no tool in OpenAI's form: {error}") from None
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return tools

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        _check_variety(self.n, self.temperature)
        return self

    @property
    def is_conversation(self) -> bool:
        """Is it of an agent with tools, or one whose answers have a form, and not of one that reads a world's text?"""
        has_form = bool(self.response_format.schema_text)
        return bool(self.tools) or has_form or any(message.tool_calls for message in self.messages)

    @property
    def samplings(self) -> list[Sampling | None]:
        """How each of `n` answers is drawn; None where no temperature is asked for: as the student was evaluated."""
        if self.temperature is None:
            return [None]
        seed = secrets.randbits(32) if self.seed is None else self.seed
        return [Sampling(self.temperature, self.top_p, (seed + number) % 2**63) for number in range(self.n)]

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts before which an answer ends."""
        return _stop_strings(self.stop)

    @property
    def max_answer_tokens(self) -> int:
        """Tokens that an answer may have, by whichever name the client gave."""
        return min(self.max_tokens, self.max_completion_tokens)

    @property
    def beginning(self) -> str:
        """What stays the same for all requests of a dialogue."""
        return "\n".join(message.text for message in self.messages[:2])


def _check_variety(answers: int, temperature: float | None) -> None:
    if temperature and temperature < COLDEST:
        raise ValueError(f"temperature: must be 0, or at least {COLDEST}")
    if answers > 1 and not temperature:
        raise ValueError("n: several answers at temperature 0 are all the same; set a temperature")


def _stop_strings(stop: str | list[str]) -> tuple[str, ...]:
    return tuple(filter(None, [stop] if isinstance(stop, str) else stop))


def parse_request(kind: type[_Request], body: bytes) -> _Request:
    """The request that a body holds. Raises `RequestError`, which names the first thing that is wrong with it."""
    try:
        data = strict_json(body.decode())
        if _SURROGATE.search(body):
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError("the body holds a lone surrogate, which is no character") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {printable_line(str(error), 200)}") from error
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RequestError(_first(error.errors())) from error


def error_response(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's API has them."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": printable(message), "type": kind, "code": status}}, status)


def _first(errors: Sequence[Any]) -> str:
    first = errors[0]
    where = ".".join(map(str, first["loc"]))
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "not supported here; leave it out"
    return printable_line(f"{where}: {message}" if where else message)
