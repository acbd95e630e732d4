"""A server that speaks OpenAI's and Anthropic's APIs, streamed or not, with a rule in the model's place, and the faults
that such servers have. Run as a program, it listens on the port that it is given."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

FAULTS = ("reset", "cut", "malformed", "html", "429", "500", "silent")
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


def answer(messages: list[dict[str, Any]], tools: bool) -> dict[str, Any]:
    """What the rule says: a call of `look` for what a user asks for, an echo of what a tool answered, else an echo."""
    last = messages[-1]
    text = last["content"] if isinstance(last.get("content"), str) else json.dumps(last.get("content"))
    if tools and last["role"] == "user":
        call = {"id": f"call_{abs(hash(text)) % 10**8}_{len(messages)}", "type": "function"}
        call["function"] = {"name": "look", "arguments": json.dumps({"at": text})}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": f"I hear {text[:200]} after {len(messages)} messages"}


def pieces(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": "" if message.get("content") else None}
    for word in (message.get("content") or "").split(" "):
        if word:
            yield {"content": word + " "}
    for number, call in enumerate(message.get("tool_calls") or ()):
        arguments = call["function"]["arguments"]
        yield {"tool_calls": [{**call, "index": number, "function": {**call["function"], "arguments": ""}}]}
        for start in range(0, len(arguments), 5):
            function = {"arguments": arguments[start : start + 5]}
            yield {"tool_calls": [{"index": number, "function": function}]}


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    model = body["model"]
    if model == "429":
        return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "1"})
    if model == "500":
        return web.json_response({"error": {"message": "broken"}}, status=500)
    if model == "html":
        return web.Response(text="<html>bad gateway</html>", content_type="text/html")
    if model == "silent":
        while request.transport and not request.transport.is_closing():
            await asyncio.sleep(0.05)
    if model == "reset":
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    message = answer(body["messages"], bool(body.get("tools")))
    head = {"id": f"chatcmpl-{len(body['messages'])}", "created": 1, "model": model, "system_fingerprint": "fp"}
    choices = [{"index": number, "message": message, "finish_reason": "stop"} for number in range(body.get("n") or 1)]
    if body.get("n"):
        choices = [{**choice, "message": {**message, "content": f"{choice['index']}"}} for choice in choices]
    if body.get("logprobs"):
        choices[0]["logprobs"] = {"content": [{"token": "I", "logprob": -0.5}, {"token": " hear", "logprob": -0.25}]}
    if not body.get("stream"):
        return web.json_response({**head, "object": "chat.completion", "choices": choices, "usage": USAGE})
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-request-id": "r1"})
    await response.prepare(request)
    for place, delta in enumerate(pieces(message)):
        chunk = {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await asyncio.sleep(float(body.get("pause") or 0))
        if model == "malformed":
            await response.write(b"data: {not json\n\n: a comment\n\n")
        if model == "cut" and place == 2:
            assert request.transport is not None
            request.transport.abort()
            return response
    end = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
    await response.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
    await response.write_eof()
    return response


async def responses(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    items = [{"role": "user", "content": body["input"]}] if isinstance(body["input"], str) else body["input"]
    text = f"I hear {json.dumps(items[-1])[:80]}"
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    message["content"] = [{"type": "output_text", "text": text, "annotations": []}]
    output: list[Any] = [{"type": "reasoning", "id": "rs", "summary": []}, message]
    if body.get("tools") and items[-1].get("role") == "user":
        output[1] = {"type": "function_call", "id": "f", "call_id": "call_1", "name": "look", "arguments": "{}"}
    number = f"resp_{abs(hash(json.dumps(body))) % 10**12}"
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    whole = {"id": number, "object": "response", "created_at": 1, "model": body["model"], "output": output}
    whole |= {"usage": usage, "status": "completed"}
    if not body.get("stream"):
        return web.json_response(whole)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for kind, more in (("response.created", {}), ("response.completed", {"response": whole})):
        await response.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode())
    await response.write_eof()
    return response


async def anthropic(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    text = f"I hear {len(body['messages'])} messages"
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": []}
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    stream: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**head, "usage": {"input_tokens": 4, "output_tokens": 0}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}} for part in text),
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t1", "name": "look"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"at": '}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"x"}'}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    for event in stream:
        await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    await response.write_eof()
    return response


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [], "key": request.headers.get("authorization", "")})


def make_app() -> web.Application:
    app = web.Application(client_max_size=1 << 27)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/responses", responses)
    app.router.add_post("/v1/messages", anthropic)
    app.router.add_get("/v1/models", models)
    return app


async def _serve(port: int, listening: threading.Event, stop: asyncio.Event, address: list[int]) -> None:
    runner = web.AppRunner(make_app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    address.append(runner.addresses[0][1])
    listening.set()
    await stop.wait()
    await runner.cleanup()


@contextmanager
def scripted_model() -> Iterator[str]:
    """The running server's base URL."""
    listening, address, stop = threading.Event(), list[int](), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(0, listening, stop, address),))
    thread.start()
    assert listening.wait(10)
    try:
        yield f"http://127.0.0.1:{address[0]}/v1"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), threading.Event(), asyncio.Event(), []))
