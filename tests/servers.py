"""Real servers for tests: PostgreSQL from the operating system, S3-compatible storage from the registries, and one that
speaks a chat model's protocol with a rule in the model's place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

BACKENDS = ("sqlite", "postgresql", "s3")


@dataclass
class PostgreSQL:
    """A running server. `kill` is kill -9 of all of it, `start` brings it back."""

    programs: Path
    folder: Path
    port: int
    user: str | None
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql://flywheel@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        command = [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        command += ["-c", "fsync=off"]  # kill -9 takes the server, never the machine
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self.user, process_group=0)
        engine = create_engine(self.url("postgres").replace("://", "+psycopg://"))
        for _ in range(200):
            try:
                with engine.connect():
                    break
            except OperationalError:
                time.sleep(0.05)
        else:
            raise RuntimeError((self.folder / "log").read_text())
        engine.dispose()

    def new_database(self) -> str:
        name = f"lake_{uuid.uuid4().hex}"
        engine = create_engine(self.url("postgres").replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"create database {name}"))
        engine.dispose()
        return self.url(name)

    def stop(self, number: int = signal.SIGQUIT) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)
            self.process.wait()


@contextmanager
def running_postgresql(folder: Path) -> Iterator[PostgreSQL]:
    """A new cluster. The server refuses to run as root, so root lends it to nobody."""
    found = [Path(shutil.which("initdb") or "/nowhere").resolve(), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    initdb = next((path for path in found if path.is_file()), None)
    if initdb is None:
        pytest.skip("needs PostgreSQL's server programs, as in: apt-get install postgresql")
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    server = PostgreSQL(initdb.parent, folder, free_port(), user)
    command = [initdb, "-D", folder / "data", "-U", "flywheel", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"]
    subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_s3() -> Iterator[str]:
    """moto's server in a process of its own, with one bucket."""
    port = free_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    process = subprocess.Popen(
        [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        fsspec.filesystem("s3").mkdir("lakes")
        yield "s3://lakes"
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lake_url(backend: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Where a new lake of a backend is; servers start when the first test asks for them."""
    if backend == "sqlite":
        return str(folder / "lake")
    catalog = request.getfixturevalue("postgresql").new_database()
    if backend == "postgresql":
        return f"{catalog}?files={folder / 'lake'}"
    return f"{catalog}?files={request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@contextmanager
def chat_server(
    answer: Callable[[dict[str, Any], str], tuple[int, str | dict[str, Any] | bytes]], port: int = 0
) -> Iterator[str]:
    """A server that speaks OpenAI's chat protocol, until the context ends; its base URL.

    `answer`: (request, Authorization header) → (HTTP status, the model's words, its whole message, or a raw body).
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, words = answer(request, self.headers["Authorization"])
            if isinstance(words, bytes):
                self._send(status, words)
                return
            message = words if isinstance(words, dict) else {"role": "assistant", "content": words}
            choice = {
                "index": 0,
                "message": message,
                "finish_reason": "stop",
                "logprobs": message.pop("logprobs", None),
            }
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
            usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
            self._send(status, json.dumps({**reply, "choices": [choice], "usage": usage}).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0.1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running_prefect(home: Path, database: str = "") -> Iterator[str]:
    """A Prefect server as one would run it for several machines; the URL of its API."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    if database:
        settings["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


@contextmanager
def web_hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a web hook, and what it was told."""
    heard: list[dict[str, Any]] = []
    with listening(lambda body: heard.append(json.loads(body))) as url:
        yield url, heard


@contextmanager
def listening(hear: Callable[[bytes], None]) -> Iterator[str]:
    """The URL of a server that hands on the body of every POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hear(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
