"""The OpenAI-compatible face of students: chat completions for whole agents, completions for their parts."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from flywheel.agents.tokens import plain_ids
from flywheel.errors import FlywheelError
from flywheel.serving.completions import Wish
from flywheel.serving.dialogue import ChatRequest, StreamOptions
from flywheel.serving.roster import Roster

WATCH_SECONDS = 1.0
MAX_TOKENS = 4096


class CompletionRequest(BaseModel):
    """A request to `/v1/completions`, as far as it is heeded; the last three are vLLM's."""

    model_config = ConfigDict(extra="ignore")
    model: str
    prompt: str | list[int]
    max_tokens: int = Field(default=16, ge=0, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    user: str = ""
    allowed_token_ids: list[int] = []
    stop_token_ids: list[int] = []
    return_token_ids: bool = False


def make_app(roster: Roster, key: str = "") -> FastAPI:
    """The application. With a key, every request must bring it as a bearer token."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(roster.watch(WATCH_SECONDS))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await roster.close()

    app = FastAPI(title="Flywheel students", lifespan=lifespan, openapi_url=None)

    @app.middleware("http")
    async def authorised(request: Request, proceed: Any) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            return _refusal(401, "the API key is missing or wrong")
        response: Response = await proceed(request)
        return response

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return _refusal(400, f"{where}: {first['msg']}" if where else first["msg"])

    @app.exception_handler(FlywheelError)
    async def unknown(_: Request, error: FlywheelError) -> Response:
        return _refusal(404, str(error))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "champion": roster.current}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "owned_by": "flywheel"} for name in roster.models()],
        }

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest) -> Response:
        if asked.n != 1:
            return _refusal(400, "n: a decision is made once; ask again for another")
        if asked.temperature:
            return _refusal(400, "temperature: a student decides as it was evaluated; leave it out, or use completions")
        async with roster.serving(asked.model, asked.user or asked.beginning) as (student, part):
            if part:
                return _refusal(400, f"{asked.model} is a part of an agent; it answers at /v1/completions")
            try:
                text, decision = await student.chat(asked.messages)
            except ValueError as error:
                return _refusal(400, f"messages: {error}")
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": student.name,
        }
        usage = _usage(decision.prompt_tokens, decision.completion_tokens)
        if asked.stream:
            return _streamed(_chat_chunks(head, text), head, usage, asked.stream_options)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest) -> Response:
        async with roster.serving(asked.model, asked.user or str(asked.prompt)) as (student, part):
            if part not in student.parts:
                names = ", ".join(f"{student.card.policy_id}/{one}" for one in student.parts)
                return _refusal(404, f"completions are for the parts of an agent, here {names}")
            tokenizer = student.parts[part].tokenizer
            wish = _wish(asked, tokenizer)
            if wish is None:
                return _refusal(400, f"prompt: it needs at least one token, and ids below {len(tokenizer)}")
            said = await student.complete(part, wish)
        pieces = [str(tokenizer.decode([token])) for token in said.tokens]
        shown = said.tokens if said.finish_reason == "length" else said.tokens[:-1]
        usage = _usage(len(wish.prompt), len(said.tokens))
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": f"{student.name}/{part}",
        }
        if asked.stream:
            texts = [str(tokenizer.decode([token])) for token in shown]
            chunks = _completion_chunks(head, texts, said.finish_reason)
            return _streamed(chunks, head, usage, asked.stream_options)
        told = {"tokens": pieces, "token_logprobs": said.logprobs} if asked.logprobs is not None else None
        choice: dict[str, Any] = {
            "index": 0,
            "text": str(tokenizer.decode(shown)),
            "finish_reason": said.finish_reason,
            "logprobs": told,
        }
        if asked.return_token_ids:
            choice["token_ids"] = said.tokens
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    return app


def _wish(asked: CompletionRequest, tokenizer: Any) -> Wish | None:
    """What a completion asks for, or None if it names tokens that there are not."""
    prompt = asked.prompt
    ids = plain_ids(tokenizer, prompt) if isinstance(prompt, str) else prompt
    known = range(len(tokenizer))
    if not ids or any(token not in known for token in [*ids, *asked.allowed_token_ids, *asked.logit_bias]):
        return None
    return Wish(
        prompt=tuple(ids),
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        seed=asked.seed,
        allowed=tuple(asked.allowed_token_ids),
        bias=tuple(asked.logit_bias.items()),
        ends=frozenset(asked.stop_token_ids or [int(tokenizer.eos_token_id)]),
    )


def _refusal(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat_chunks(head: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    """An answer in the pieces of a stream. A decision is made as a whole, so the first piece waits for it."""
    yield {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for piece in re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", text):
        yield {**head, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def _completion_chunks(head: dict[str, Any], texts: list[str], reason: str) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield {**head, "choices": [{"index": 0, "text": text, "finish_reason": None, "logprobs": None}]}
    yield {**head, "choices": [{"index": 0, "text": "", "finish_reason": reason, "logprobs": None}]}


def _streamed(
    chunks: Iterator[dict[str, Any]], head: dict[str, Any], usage: dict[str, int], options: StreamOptions
) -> StreamingResponse:
    def lines() -> Iterator[str]:
        for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
        if options.include_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")
