"""The OpenAI-compatible face of students: chat completions for whole agents, completions for their parts."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from flywheel.agents.tokens import plain_ids
from flywheel.errors import FlywheelError, InfrastructureError
from flywheel.serving.completions import Completer, Completion, GenerationRequest
from flywheel.serving.requests import ChatRequest, CompletionRequest, RequestError, StreamOptions, parse_request
from flywheel.serving.roster import Roster
from flywheel.text import printable

WATCH_SECONDS = 1.0
LOOK_SECONDS = 0.5
"""How often a server looks whether who asked is still there."""
GONE = 499
"""Status of an answer that nobody waits for, as nginx has it."""


def make_app(roster: Roster) -> FastAPI:
    """The application; `bounds.Bounded` stands before it."""

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

    @app.exception_handler(RequestError)
    async def malformed(_: Request, error: RequestError) -> Response:
        return _refusal(400, str(error))

    @app.exception_handler(FlywheelError)
    async def unknown(_: Request, error: FlywheelError) -> Response:
        return _refusal(500 if isinstance(error, InfrastructureError) else 404, str(error))

    @app.exception_handler(HTTPException)
    async def elsewhere(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail))

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        return {"status": "ok", "champion": roster.current}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in roster.models()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        await roster.check(name)
        return JSONResponse(_model(name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        wanted = parse_request(ChatRequest, await request.body())
        async with roster.serving(wanted.model, wanted.user or wanted.beginning) as (student, part):
            if part:
                return _refusal(400, f"{wanted.model} is a part of an agent; it answers at /v1/completions")
            try:
                text, decision = await student.chat(wanted.messages)
            except ValueError as error:
                return _refusal(400, f"messages: {error}")
            tokenizer = next(reversed(student.parts.values())).tokenizer
        text, reason = _cut(text, tokenizer, wanted.longest)
        head = _head("chatcmpl", "chat.completion.chunk" if wanted.stream else "chat.completion", student.name)
        usage = _usage(decision.prompt_tokens, min(decision.completion_tokens, wanted.longest))
        if wanted.stream:
            return _streamed(_chat_chunks(head, text, reason), head, usage, wanted.stream_options)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        wanted = parse_request(CompletionRequest, await request.body())
        async with roster.serving(wanted.model, wanted.user or str(wanted.prompt)[:1000]) as (student, part):
            if part not in student.parts:
                names = ", ".join(f"{student.card.policy_id}/{one}" for one in student.parts)
                return _refusal(404, f"completions are for the parts of an agent, here {names}")
            completer = student.parts[part]
            prompts = [await _tokens_of(prompt, completer) for prompt in wanted.prompts]
            generations = [generation for ids in prompts for generation in _generations(wanted, ids, completer)]
            answers = await _answered(
                request, asyncio.gather(*(student.complete(part, generation) for generation in generations))
            )
            if answers is None:
                return Response(status_code=GONE)
        head = _head("cmpl", "text_completion", f"{student.name}/{part}")
        read = sum(len(generation.prompt) for generation in generations[:: wanted.n])
        usage = _usage(read, sum(len(said.tokens) for said in answers))
        if wanted.stream:
            (said,) = answers
            texts = [str(completer.tokenizer.decode([token])) for token in said.shown]
            return _streamed(_completion_chunks(head, texts, said.finish_reason), head, usage, wanted.stream_options)
        choices = [
            _choice(number, wanted, generation, said, completer)
            for number, (generation, said) in enumerate(zip(generations, answers, strict=True))
        ]
        return JSONResponse({**head, "choices": choices, "usage": usage})

    return app


async def _answered(request: Request, answers: asyncio.Future[list[Completion]]) -> list[Completion] | None:
    """The answers, or None where the client went away meanwhile: nothing more is computed for it."""
    while not (await asyncio.wait([answers], timeout=LOOK_SECONDS))[0]:
        if await request.is_disconnected():
            answers.cancel()
            with suppress(asyncio.CancelledError):
                await answers
            return None
    return answers.result()


async def _tokens_of(prompt: str | list[int], completer: Completer) -> list[int]:
    """A prompt's token ids, found beside what the server does. What is surely too long is not even tokenised."""
    if not isinstance(prompt, str):
        return prompt
    if len(prompt) > completer.most_letters:
        raise RequestError(f"prompt: {len(prompt)} letters are more than the {completer.longest} tokens of the context")
    return await asyncio.to_thread(plain_ids, completer.tokenizer, prompt)


def _generations(wanted: CompletionRequest, ids: list[int], completer: Completer) -> list[GenerationRequest]:
    """What is asked for one prompt. Raises `RequestError` for unknown tokens, and for more than the model reads."""
    tokenizer = completer.tokenizer
    known = range(len(tokenizer))
    allowed = list(dict.fromkeys(wanted.allowed_token_ids))
    if not ids or any(token not in known for token in [*ids, *allowed, *wanted.logit_bias, *wanted.stop_token_ids]):
        raise RequestError(f"prompt: it needs at least one token, and ids below {len(tokenizer)}")
    if len(ids) + wanted.max_tokens > completer.longest:
        raise RequestError(
            f"prompt: the model's context has {completer.longest} tokens, "
            f"this asks for {len(ids)} and {wanted.max_tokens} more"
        )
    return [
        GenerationRequest(
            prompt=tuple(ids),
            max_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            seed=(wanted.seed + number) % 2**63,
            allowed=tuple(allowed),
            bias=tuple(wanted.logit_bias.items()),
            ends=frozenset(wanted.stop_token_ids or [int(tokenizer.eos_token_id)]),
            stops=wanted.stops,
            top=wanted.logprobs or 0,
        )
        for number in range(wanted.n)
    ]


def _choice(
    number: int, wanted: CompletionRequest, generation: GenerationRequest, said: Completion, completer: Completer
) -> dict[str, Any]:
    decode = completer.tokenizer.decode
    text = str(decode(said.shown))
    cuts = [place for stop in generation.stops if (place := text.find(stop)) >= 0]
    text = text[: min(cuts)] if cuts else text
    prompt = wanted.prompts[number // wanted.n]
    echoed = (prompt if isinstance(prompt, str) else str(decode(prompt))) if wanted.echo else ""
    choice: dict[str, Any] = {
        "index": number,
        "text": echoed + text,
        "finish_reason": said.finish_reason,
        "logprobs": None if wanted.logprobs is None else _logprobs(said, decode),
    }
    return {**choice, "token_ids": said.tokens} if wanted.return_token_ids else choice


def _logprobs(said: Completion, decode: Any) -> dict[str, Any]:
    pieces = [str(decode([token])) for token in said.tokens]
    offsets = [len("".join(pieces[:place])) for place in range(len(pieces))]
    top = [{str(decode([token])): value for token, value in one.items()} for one in said.top]
    return {"tokens": pieces, "token_logprobs": said.logprobs, "top_logprobs": top or None, "text_offset": offsets}


def _cut(text: str, tokenizer: Any, longest: int) -> tuple[str, str]:
    """(an answer within its tokens, why it ends)."""
    ids = plain_ids(tokenizer, text) if len(text) > longest else []
    return (str(tokenizer.decode(ids[:longest])), "length") if len(ids) > longest else (text, "stop")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "flywheel"}


def _head(kind: str, name: str, model: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()), "model": model}


def _refusal(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": printable(message), "type": kind, "code": status}}, status)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat_chunks(head: dict[str, Any], text: str, reason: str) -> Iterator[dict[str, Any]]:
    """An answer in the pieces of a stream. A decision is made as a whole, so the first piece waits for it."""
    yield {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for piece in re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", text):
        yield {**head, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def _completion_chunks(head: dict[str, Any], texts: Sequence[str], reason: str) -> Iterator[dict[str, Any]]:
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
