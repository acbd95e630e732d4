"""The OpenAI-compatible API of students: chat completions for whole agents, completions for their models."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from flywheel.agents.contexts.tokenization import encode_plain
from flywheel.agents.policy import Decision
from flywheel.errors import FlywheelError, InfrastructureError
from flywheel.messages import Message
from flywheel.serving.answers import as_event_stream, choice, completion, head
from flywheel.serving.completions import Completer, Completion, GenerationRequest
from flywheel.serving.requests import (
    ChatRequest,
    CompletionRequest,
    RequestError,
    StreamOptions,
    error_response,
    parse_request,
)
from flywheel.serving.roster import Roster

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WATCH_SECONDS = 1.0
DISCONNECT_POLL_SECONDS = 0.5
CLIENT_CLOSED_REQUEST = 499
"""Status for a client that closed the connection, as in nginx."""


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
    async def on_request_error(_: Request, error: RequestError) -> Response:
        return error_response(400, str(error))

    @app.exception_handler(FlywheelError)
    async def on_flywheel_error(_: Request, error: FlywheelError) -> Response:
        return error_response(500 if isinstance(error, InfrastructureError) else 404, str(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail))

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
        params = parse_request(ChatRequest, await request.body())
        async with roster.serving(params.model, params.user or params.beginning) as (student, part):
            if part:
                return error_response(400, f"{params.model} is a part of an agent; it answers at /v1/completions")
            try:
                answers = await student.answers(params)
            except ValueError as error:
                return error_response(400, f"messages: {error}")
            *_, acting = student.parts.values()  # the executor, or the flat model
        choices = [
            _chat_choice(index, params, message, decision, acting.tokenizer)
            for index, (message, decision) in enumerate(answers)
        ]
        read = sum(decision.prompt_tokens or 0 for _, decision in answers[:1])
        usage = _usage(
            read, sum(min(decision.completion_tokens or 0, params.max_answer_tokens) for _, decision in answers)
        )
        known = [_metadata(decision) for _, decision in answers]
        answer = completion(choices, student.name, usage, known[0] if len(known) == 1 else {"choices": known})
        if params.stream:
            lines = as_event_stream(answer, include_usage=params.stream_options.include_usage)
            return Response(lines, media_type="text/event-stream")
        return JSONResponse(answer)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        params = parse_request(CompletionRequest, await request.body())
        async with roster.serving(params.model, params.user or str(params.prompt)[:1000]) as (student, part):
            if part not in student.parts:
                names = ", ".join(f"{student.card.policy_id}/{name}" for name in student.parts)
                return error_response(404, f"completions are for the parts of an agent, here {names}")
            completer = student.parts[part]
            prompts = [await _encode_prompt(prompt, completer) for prompt in params.prompts]
            generations = [generation for ids in prompts for generation in _generations(params, ids, completer)]
            answers = await _unless_disconnected(
                request, asyncio.gather(*(student.complete(part, generation) for generation in generations))
            )
            if answers is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        beginning = head("cmpl", "text_completion", f"{student.name}/{part}")
        read = sum(len(generation.prompt) for generation in generations[:: params.n])
        usage = _usage(read, sum(len(completion.tokens) for completion in answers))
        if params.stream:
            (completion,) = answers
            texts = [str(completer.tokenizer.decode([token])) for token in completion.visible_tokens]
            chunks = _completion_chunks(beginning, texts, completion.finish_reason)
            return _streamed(chunks, beginning, usage, params.stream_options)
        choices = [
            _choice(index, params, generation, completion, completer)
            for index, (generation, completion) in enumerate(zip(generations, answers, strict=True))
        ]
        return JSONResponse({**beginning, "choices": choices, "usage": usage})

    return app


async def _unless_disconnected(request: Request, answers: asyncio.Future[list[Completion]]) -> list[Completion] | None:
    """The answers, or None if the client disconnects before: nothing more is computed for it."""
    while not (await asyncio.wait([answers], timeout=DISCONNECT_POLL_SECONDS))[0]:
        if await request.is_disconnected():
            answers.cancel()
            with suppress(asyncio.CancelledError):
                await answers
            return None
    return answers.result()


async def _encode_prompt(prompt: str | list[int], completer: Completer) -> list[int]:
    """A prompt's token ids, computed in a thread. What is surely too long is not even tokenised."""
    if not isinstance(prompt, str):
        return prompt
    if len(prompt) > completer.max_prompt_chars:
        raise RequestError(
            f"prompt: {len(prompt)} characters are more than the {completer.max_context_tokens} tokens of the context"
        )
    return await asyncio.to_thread(encode_plain, completer.tokenizer, prompt)


def _generations(params: CompletionRequest, ids: list[int], completer: Completer) -> list[GenerationRequest]:
    """What is asked for one prompt. Raises `RequestError` for unknown tokens, and for more than the model reads."""
    tokenizer = completer.tokenizer
    known = range(len(tokenizer))
    allowed = list(dict.fromkeys(params.allowed_token_ids))
    if not ids or any(token not in known for token in [*ids, *allowed, *params.logit_bias, *params.stop_token_ids]):
        raise RequestError(f"prompt: it needs at least one token, and ids below {len(tokenizer)}")
    if len(ids) + params.max_tokens > completer.max_context_tokens:
        raise RequestError(
            f"prompt: the model's context has {completer.max_context_tokens} tokens, "
            f"this asks for {len(ids)} and {params.max_tokens} more"
        )
    return [
        GenerationRequest(
            prompt=tuple(ids),
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=(params.seed + number) % 2**63,
            allowed=tuple(allowed),
            bias=tuple(params.logit_bias.items()),
            stop_token_ids=frozenset(params.stop_token_ids or [int(tokenizer.eos_token_id)]),
            stop_strings=params.stop_strings,
            top_logprobs=params.logprobs or 0,
        )
        for number in range(params.n)
    ]


def _choice(
    index: int,
    params: CompletionRequest,
    generation: GenerationRequest,
    completion: Completion,
    completer: Completer,
) -> dict[str, Any]:
    decode = completer.tokenizer.decode
    text = str(decode(completion.visible_tokens))
    text = text[: _first_stop(text, generation.stop_strings)]
    prompt = params.prompts[index // params.n]
    echoed = (prompt if isinstance(prompt, str) else str(decode(prompt))) if params.echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": echoed + text,
        "finish_reason": completion.finish_reason,
        "logprobs": None if params.logprobs is None else _logprobs(completion, decode),
    }
    return {**choice, "token_ids": completion.tokens} if params.return_token_ids else choice


def _logprobs(completion: Completion, decode: Any) -> dict[str, Any]:
    pieces = [str(decode([token])) for token in completion.tokens]
    offsets = list(accumulate(map(len, pieces), initial=0))[:-1]
    top = [
        {str(decode([token])): value for token, value in logprob_by_token.items()}
        for logprob_by_token in completion.top_logprobs
    ]
    return {
        "tokens": pieces,
        "token_logprobs": completion.logprobs,
        "top_logprobs": top or None,
        "text_offset": offsets,
    }


def _chat_choice(
    index: int, params: ChatRequest, message: Message, decision: Decision, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    if message.tool_calls:
        return choice(message, index=index)
    text, reason = _truncate(message.content, tokenizer, params.max_answer_tokens)
    cut = _first_stop(text, params.stop_strings)
    text, reason = (text[:cut], "stop") if cut is not None else (text, reason)
    logprobs = _chat_logprobs(text, decision, tokenizer) if params.logprobs else None
    return choice(Message("assistant", text), index=index, finish_reason=reason, logprobs=logprobs)


def _chat_logprobs(text: str, decision: Decision, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The log-probability of each token of a text, among those that were allowed; None where the student chose an
    action that it did not spell as the text does."""
    tokens = decision.tokens or ()
    pieces = [str(tokenizer.decode([token])) for token in tokens]
    if not tokens or not decision.logprobs or not "".join(pieces).strip().startswith(text.strip()):
        return None
    ends = accumulate(map(len, pieces))
    shown = [place for place, end in enumerate(ends) if end - len(pieces[place]) < len(text)]
    content = [
        {
            "token": pieces[place],
            "logprob": decision.logprobs[place],
            "bytes": None if "\ufffd" in pieces[place] else list(pieces[place].encode()),
            "top_logprobs": [],
        }
        for place in shown
    ]
    return {"content": content, "refusal": None}


def _truncate(text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> tuple[str, str]:
    """(an answer of at most so many tokens, its finish reason). No token is less than a byte."""
    ids = encode_plain(tokenizer, text) if len(text.encode()) > max_tokens else []
    return (str(tokenizer.decode(ids[:max_tokens])), "length") if len(ids) > max_tokens else (text, "stop")


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the texts begins that end an answer."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "flywheel"}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _metadata(decision: Decision) -> dict[str, Any]:
    """What else is known of a decision. `confidence`: the probability of exactly these words among those allowed."""
    known: dict[str, Any] = {"subgoal": decision.subgoal} if decision.subgoal else {}
    return known | ({"confidence": math.exp(sum(decision.logprobs))} if decision.logprobs else {})


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
