"""One question to a chat model behind an OpenAI-compatible server, answered by a JSON schema."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError

PASSING = frozenset({408, 409, 429})
"""Refusals that pass."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a model answers; `key` names the environment variable with its API key, `role` says who asks."""

    role: str
    base_url: str
    model: str
    key: str
    timeout: float = 120.0


def ask(server: Server, system: str, text: str, schema: type[BaseModel], *, temperature: float, seed: int) -> str:
    """The model's words, which may fit the schema or not.

    Raises `InfrastructureError` if the server fails, `ConfigError` if it refuses.
    """
    try:
        from openai import APIStatusError, OpenAI, OpenAIError
    except ImportError as error:
        raise PrerequisiteError(f"the {server.role} needs openai: pip install 'trajectory-flywheel[judge]'") from error
    asked = {"name": schema.__name__.lower(), "strict": True, "schema": schema.model_json_schema()}
    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    format: Any = {"type": "json_schema", "json_schema": asked}
    key = os.environ.get(server.key, "none")
    try:
        with OpenAI(base_url=server.base_url, api_key=key, timeout=server.timeout) as client:
            reply = client.chat.completions.create(
                model=server.model, messages=messages, temperature=temperature, seed=seed, response_format=format
            )
    except APIStatusError as error:
        if error.status_code in PASSING or error.status_code >= 500:
            raise InfrastructureError(
                f"the {server.role} at {server.base_url} fails: HTTP {error.status_code}"
            ) from error
        raise ConfigError(
            f"the {server.role} at {server.base_url} refuses: HTTP {error.status_code}; "
            f"check base_url, model and {server.key}"
        ) from error
    except OpenAIError as error:
        raise InfrastructureError(
            f"the {server.role} at {server.base_url} does not answer: {type(error).__name__}"
        ) from error
    return (reply.choices[0].message.content or "") if reply.choices else ""
