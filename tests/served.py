"""A flywheel that is really served: `flywheel serve` in a process of its own, steered by its own command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flywheel.datasets.lake.lake import Lake

ROOT = Path(__file__).parents[1]
FLYWHEEL = str(Path(sys.executable).parent / "flywheel")
SMOKE = ROOT / "configs" / "smoke.toml"
WAIT = 150.0


def free_port() -> int:
    """Below the ports that systems hand out by themselves, one of which another process may get meanwhile."""
    for port in range(20_000 + os.getpid() % 5000, 30_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@dataclass
class Served:
    """`flywheel serve` on a data directory. `sets`: overrides that every command gets."""

    data: Path
    config: Path = SMOKE
    sets: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it is served. A new one is resumed, which changes nothing and says that it is there."""
        old = (self.data / "catalog.sqlite").exists()
        with (self.data.parent / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [FLYWHEEL, "--log", "json", "serve", str(self.config), *self._sets()],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        self.until(
            lambda: (
                (self.data / "prefect" / "address").exists()
                and (self.status()["served"] is not None if old else self._deployed())
            )
        )

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def told(self, command: str, *arguments: str) -> Any:
        """What a command says as JSON; it takes this flywheel's config."""
        return run(command, str(self.config), *arguments, "--json", *self._sets())

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = run("status", "--data-dir", str(self.data), "--json")
        return answer

    def log(self) -> str:
        return (self.data.parent / "serve.log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the JSON log about one event."""
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        return [one for one in map(json.loads, lines) if one["event"] == name]

    def until(self, holds: Callable[[], bool], seconds: float = WAIT) -> None:
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.5)

    def _deployed(self) -> bool:
        command = [FLYWHEEL, "resume", str(self.config), "--json", *self._sets()]
        return subprocess.run(command, capture_output=True, cwd=ROOT, check=False).returncode == 0

    def _sets(self) -> list[str]:
        return [part for one in (f"data_dir={self.data}", *self.sets) for part in ("--set", one)]


@contextmanager
def serving(data: Path, *sets: str, config: Path = SMOKE) -> Iterator[Served]:
    data.parent.mkdir(exist_ok=True, parents=True)
    served = Served(data, config, [f"serve.port={free_port()}", *sets])
    try:
        served.start()
        yield served
        assert served.stop() == 0
    finally:
        served.kill()


def run(*arguments: str, env: dict[str, str] | None = None) -> Any:
    """What a command says as JSON."""
    done = subprocess.run(
        [FLYWHEEL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def policy_server(lake: Lake, *arguments: str, key: str = "") -> Iterator[str]:
    """The base URL of `flywheel serve-policy` in a process of its own."""
    process = subprocess.Popen(
        [FLYWHEEL, "serve-policy", *arguments, "--data-dir", str(lake.root), "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"FLYWHEEL_SERVE_KEY": key},
    )
    assert process.stderr is not None
    told = process.stderr.readline()
    assert told.startswith("serving "), told + process.stderr.read()
    try:
        yield told.split(" at ")[1].strip()
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert (process.returncode, error) == (0, "")
