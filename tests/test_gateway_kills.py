"""kill -9 of the gateway while agents stream through it: every answered call is in the lake once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from flywheel.datasets.lake.lake import Lake
from flywheel.gateway.mover import move
from flywheel.gateway.spool import connected
from tests.gateways import config_of
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
LATEST_START = 60.0


class Gateway:
    """The command in a process of its own, that is killed and started again."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.port = free_port()
        self.config = config_of(folder / "lake", upstream, port=self.port, idle=1.0)
        self.file = folder / "agent.toml"
        self.file.write_text(
            f'name = "agent"\ndata_dir = "{folder / "lake"}"\n[environment]\nname = "gateway/agent"\n'
            f'[gateway]\nupstream = "{upstream}"\nport = {self.port}\nidle = 1.0\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [Path(sys.executable).parent / "flywheel", "gateway", self.file]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + LATEST_START
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the gateway does not answer")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


async def agent(name: str, url: str, answered: dict[tuple[str, str], int], until: float) -> None:
    """A session after the other. Of every answer that came whole it is noted how often it was asked for: what broke is
    asked for again."""
    number = 0
    async with httpx.AsyncClient(timeout=10) as client:
        while time.monotonic() < until:
            number += 1
            session, messages = f"{name}.{number}", [{"role": "user", "content": f"{name} begins {number}"}]
            for turn in range(4):
                answer, asked = None, 0
                while answer is None and time.monotonic() < until + 30:
                    answer, asked = await stream(client, url, session, messages), asked + 1
                if answer is None:
                    return
                answered[session, answer.strip()] = asked
                messages += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": f"{session} turn {turn}"},
                ]


async def stream(client: httpx.AsyncClient, url: str, session: str, messages: list[dict[str, str]]) -> str | None:
    """The answer's words, or None for one that broke off."""
    body = {"model": "m", "messages": messages, "stream": True, "pause": 0.002}
    headers = {"x-flywheel-session": session}
    try:
        async with client.stream("POST", f"{url}/chat/completions", json=body, headers=headers) as reply:
            data = b"".join([chunk async for chunk in reply.aiter_raw()])
    except httpx.HTTPError:
        await asyncio.sleep(0.05)
        return None
    assert reply.status_code == 200 and data.endswith(b"data: [DONE]\n\n")
    pieces = [line.split(b'"content": "')[1].split(b'"')[0] for line in data.splitlines() if b'"content": "' in line]
    return b"".join(pieces).decode()


async def storm(
    gateway: Gateway, agents: int, seconds: float, kills: int
) -> tuple[dict[tuple[str, str], int], list[int]]:
    """((session, answer) → how often it was asked for, the gateway's memory in MiB just before each kill)."""
    answered, memory, url = dict[tuple[str, str], int](), list[int](), f"http://127.0.0.1:{gateway.port}/v1"
    until = time.monotonic() + seconds
    running = [asyncio.create_task(agent(f"a{number}", url, answered, until)) for number in range(agents)]
    for _ in range(kills):
        await asyncio.sleep(seconds / (kills + 1))
        assert gateway.process is not None
        memory.append(psutil.Process(gateway.process.pid).memory_info().rss >> 20)
        await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)
    await asyncio.gather(*running)
    return answered, memory


def weather(folder: Path, agents: int, seconds: float, kills: int) -> list[int]:
    """A storm, and that nothing was lost or doubled in it; the gateway's memory."""
    port = free_port()
    model = subprocess.Popen(
        [sys.executable, "-m", "tests.scripted_model", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    gateway = Gateway(folder, f"http://127.0.0.1:{port}/v1")
    try:
        gateway.start()
        answered, memory = asyncio.run(storm(gateway, agents, seconds, kills))
        gateway.kill()
        with Lake.of(gateway.config, create=True) as lake, connected(gateway.config.data_dir) as spool:
            spool.execute("update session set closed_at = 0 where closed_at is null")
            move(gateway.config, lake, spool)
            rows = lake.sql(
                """select t.task_name, m.content, m.index, s.trainable from messages m
                   join steps s using (trajectory_id, index) join trajectories t using (trajectory_id)
                   where m.role = 'assistant' and s.trainable"""
            ).to_pylist()
            left = spool.execute("select count(*) from call").fetchone()[0]
    finally:
        os.kill(model.pid, signal.SIGKILL)
        model.wait()
    recorded = Counter((row["task_name"], row["content"].strip()) for row in rows)
    assert len(answered) > 4 * agents and left == 0
    lost = [key for key in answered if recorded[key] < 1]
    assert lost == [], f"{len(lost)} of {len(answered)} answered calls are not in the lake"
    doubled = [key for key, asked in answered.items() if recorded[key] > asked]
    assert doubled == []
    print(f"\n{len(answered)} answered calls of {agents} agents, {kills} kills, {sum(recorded.values())} recorded")
    return memory


@pytest.mark.minutes
def test_no_answered_call_is_lost_or_doubled(tmp_path: Path) -> None:
    weather(tmp_path, agents=16, seconds=6, kills=2)


@pytest.mark.slow
def test_five_minutes_of_sixty_four_streams_and_twenty_kills(tmp_path: Path) -> None:
    memory = weather(tmp_path, agents=64, seconds=300, kills=20)
    assert max(memory[-5:]) < 1.5 * max(memory[:5]) + 50
