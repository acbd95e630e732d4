"""What the gateway adds to a model's answers, beside a direct connection and other proxies.

    python benchmarks/gateway.py --streams 64 --seconds 20 --proxy litellm=http://127.0.0.1:4000/v1

A server that thinks for 50 ms and then says 20 tokens, one each 20 ms, stands for the model. As many streams as asked
for run through each way in turn, in rounds, so that what else the machine does hits all of them alike. One JSON line a
way: streams a second, milliseconds to the first token and to the last byte, and what is added to a direct connection.

To measure LiteLLM's proxy, install `litellm[proxy]` elsewhere, print its config with --litellm-config, and start it:

    python benchmarks/gateway.py --litellm-config > litellm.yaml && litellm --config litellm.yaml --port 4000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import numpy as np
import uvloop
from aiohttp import web

MODEL_PORT, GATEWAY_PORT = 8471, 8472
KEY = "sk-1234-of-this-benchmark-and-of-nothing-else"
THINKS, TOKENS, BETWEEN = 0.05, 20, 0.02
LITELLM = f"""model_list:
  - model_name: model
    litellm_params:
      model: openai/model
      api_base: http://127.0.0.1:{MODEL_PORT}/v1
      api_key: none
general_settings:
  master_key: {KEY}
"""


async def answer(request: web.Request) -> web.StreamResponse:
    """A model's stream."""
    await request.read()
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(THINKS)
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "model"}
    for _ in range(TOKENS):
        chunk = {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "word "}}]}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await asyncio.sleep(BETWEEN)
    end = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    await response.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
    await response.write_eof()
    return response


def serve_model() -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=MODEL_PORT, print=None, loop=uvloop.new_event_loop())


async def stream(client: aiohttp.ClientSession, url: str, number: int) -> tuple[float, float]:
    """Seconds to the first token, and to the last byte."""
    words = [{"role": "system", "content": "You are an agent. " * 50}, {"role": "user", "content": f"run {number}"}]
    began, first = time.perf_counter(), 0.0
    async with client.post(
        f"{url}/chat/completions", json={"model": "model", "messages": words, "stream": True}
    ) as reply:
        reply.raise_for_status()
        async for chunk in reply.content.iter_any():
            if not first and b"content" in chunk:
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


async def through(url: str, streams: int, seconds: float) -> list[tuple[float, float]]:
    """So many streams at once, each followed by another, for so long."""
    until, measured = time.perf_counter() + seconds, list[tuple[float, float]]()

    async def one_after_another(place: int) -> None:
        await asyncio.sleep(place * (THINKS + TOKENS * BETWEEN) / streams)
        number = 0
        while time.perf_counter() < until:
            number += 1
            measured.append(await stream(client, url, place * 100_000 + number))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"authorization": f"Bearer {KEY}"}) as client:
        await asyncio.gather(*(one_after_another(place) for place in range(streams)))
    return measured


def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command)
    for _ in range(600):
        try:
            asyncio.run(_knock(port))
            return process
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing listens at port {port}")


async def _knock(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()


def report(ways: Mapping[str, list[tuple[float, float]]], seconds: float) -> None:
    direct = 1e3 * np.quantile(np.array(ways["direct"]), [0.5, 0.99], axis=0)
    for name, measured in ways.items():
        quantiles = 1e3 * np.quantile(np.array(measured), [0.5, 0.99], axis=0)
        row = {"way": name, "streams_per_second": round(len(measured) / seconds, 1)}
        for place, what in enumerate(("first_token", "last_byte")):
            row |= {f"{what}_ms_{q}": round(quantiles[n, place], 2) for n, q in enumerate(("p50", "p99"))}
            row |= {f"{what}_added_{q}": round((quantiles - direct)[n, place], 2) for n, q in enumerate(("p50", "p99"))}
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20, help="of each way")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--proxy", action="append", default=[], metavar="NAME=URL", help="another one that runs")
    parser.add_argument("--litellm-config", action="store_true")
    parser.add_argument("--model", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.litellm_config:
        print(LITELLM)
        return
    if given.model:
        serve_model()
        return
    urls = {
        "direct": f"http://127.0.0.1:{MODEL_PORT}/v1",
        "gateway": f"http://127.0.0.1:{GATEWAY_PORT}/v1",
        **dict(proxy.split("=", 1) for proxy in given.proxy),
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "agent.toml"
        config.write_text(
            f'name = "bench"\ndata_dir = "{folder}/lake"\n[environment]\nname = "gateway/agent"\n'
            f'[gateway]\nupstream = "{urls["direct"]}"\nport = {GATEWAY_PORT}\nidle = 500\n'
        )
        flywheel = Path(sys.executable).parent / "flywheel"
        processes = [
            start([sys.executable, __file__, "--model"], MODEL_PORT),
            start([str(flywheel), "gateway", str(config)], GATEWAY_PORT),
        ]
        ways: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
        try:
            for url in urls.values():
                uvloop.run(through(url, given.streams, 2))
            for _ in range(given.rounds):
                for name, url in urls.items():
                    ways[name] += uvloop.run(through(url, given.streams, given.seconds / given.rounds))
        finally:
            for process in processes:
                process.terminate()
                process.wait()
    report(ways, given.seconds)


if __name__ == "__main__":
    main()
