"""A gateway in this process, with a scripted model behind it and a lake to move into."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from flywheel.config.root import Config, make
from flywheel.datasets.lake.lake import Lake
from flywheel.gateway import app
from flywheel.gateway.mover import move
from flywheel.gateway.server import in_background
from flywheel.gateway.spool import connected
from flywheel.trajectory import Trajectory

_UNMOVED = "select count(*) from session where trajectory_id is null"
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}]


def config_of(folder: Path, upstream: str, **settings: Any) -> Config:
    gateway = {"upstream": upstream, "port": 0, "dev_share": 0, "test_share": 0, "timeout": 2.0, **settings}
    return make(
        {
            "name": "agent",
            "data_dir": str(folder),
            "environment": {"name": "gateway/agent"},
            "curate": {"verifiers": ["outcome"]},
            "gateway": gateway,
        }
    )


@dataclass
class Recorder:
    """A running gateway. `url` ends with /v1."""

    config: Config
    url: str
    gateway: app.Gateway
    lakes: list[Lake] = field(default_factory=list)
    client: httpx.Client = field(default_factory=partial(httpx.Client, timeout=30))

    def post(self, body: dict[str, Any], path: str = "chat/completions", **given: Any) -> httpx.Response:
        """One request to the model."""
        return self.client.post(f"{self.url}/{path}", json={"model": "m", **body}, **given)

    def report(self, session: str, **told: Any) -> httpx.Response:
        return self.client.post(f"{self.url}/sessions/{session}/outcome", json=told)

    def lake(self, *sessions: str) -> Lake:
        """The lake with all that was recorded; these sessions end first, or else every one."""
        for name in sessions or list(self.gateway.sessions._open):
            self.gateway.sessions.end(name)
        lake = Lake.of(self.config, create=True)
        self.lakes.append(lake)
        with connected(self.config.data_dir) as spool:
            deadline = time.monotonic() + 10
            while True:
                move(self.config, lake, spool)
                left = len(self.gateway.sessions), *spool.execute(_UNMOVED).fetchone()
                if sessions or not any(left):
                    return lake
                assert time.monotonic() < deadline, left
                time.sleep(0.02)

    def trajectories(self) -> list[Trajectory]:
        """All of them, the main one of each session first."""
        lake = self.lake()
        ids = lake.sql("select trajectory_id from trajectories order by started_at, attempt")["trajectory_id"]
        return lake.trajectories(ids.to_pylist())


@contextmanager
def recording(folder: Path, upstream: str, key: str = "", **settings: Any) -> Iterator[Recorder]:
    config = config_of(folder, upstream, **settings)
    app.SWEEP_SECONDS = 0.02
    with in_background(config, key) as (url, gateway):
        recorder = Recorder(config, url, gateway)
        try:
            yield recorder
        finally:
            recorder.client.close()
            for lake in recorder.lakes:
                lake.close()
