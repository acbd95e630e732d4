"""Publishing: a student's files reach a hub as they are. This one speaks the protocol and keeps what it is given."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.errors import InfrastructureError, PolicyError
from flywheel.filters.curate import curate
from flywheel.integrations.hub import push
from flywheel.policies.card import PolicyCard
from flywheel.policies.registry import policy_directory
from flywheel.trajectory import Trajectory


@dataclass
class Hub:
    """Repositories as name → files; `refuses` is an HTTP status for everything."""

    url: str = ""
    refuses: int = 0
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> dict[str, object]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            self.private.setdefault(name, asked.get("private", False) or asked.get("visibility") == "private")
            return {"url": f"{self.url}/{name}", "name": name}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    kept = self.files.setdefault(name, {})
                    kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{name}/commit/{'0' * 40}"}
        return {"id": name, "private": self.private.get(name, False), "sha": "0" * 40, "siblings": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    told = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            chunked = self.headers.get("Transfer-Encoding") == "chunked"
            body = self._chunks() if chunked else self.rfile.read(size)
            data = json.dumps(told.answer(self.path.partition("?")[0], body)).encode()
            self.send_response(told.refuses or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def _chunks(self) -> bytes:
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def student(smoke: Config, lake: Lake, golden: list[Trajectory]) -> PolicyCard:
    lake.append(golden, "golden")
    curate(smoke, lake)
    return distill(smoke, lake, "hierarchical", 1)


def test_every_file_arrives_as_it_is_and_privately(lake: Lake, student: PolicyCard, hub: Hub) -> None:
    call = ["push", student.policy_id[:20], "me/kitchen", "--endpoint", hub.url, "--data-dir", str(lake.root)]
    assert CliRunner().invoke(app, [*call, "--dry-run"]).exit_code == 0
    assert hub.private == {}
    told = CliRunner().invoke(app, [*call, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["commit"].startswith(f"{hub.url}/me/kitchen/commit/")
    assert hub.private == {"me/kitchen": True}
    folder = policy_directory(lake, student.policy_id)
    assert hub.files["me/kitchen"] == {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert "planner/model.safetensors" in hub.files["me/kitchen"]


def test_what_is_public_already_is_not_pushed_to_by_accident(lake: Lake, student: PolicyCard, hub: Hub) -> None:
    hub.private["me/open"] = False
    with pytest.raises(PolicyError, match="is public; say --public"):
        push(lake, student.policy_id, "me/open", endpoint=hub.url)
    assert hub.files == {}
    push(lake, student.policy_id, "me/open", endpoint=hub.url, private=False)
    assert hub.files


def test_refusals_are_one_line(lake: Lake, student: PolicyCard, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = 403
    with pytest.raises(PolicyError, match="refuses") as told:
        push(lake, student.policy_id, "me/kitchen", endpoint=hub.url)
    assert "\n" not in str(told.value)
    with pytest.raises(PolicyError, match="is no repository"):
        push(lake, student.policy_id, "a name with spaces", endpoint=hub.url)
    with pytest.raises(InfrastructureError, match="does not answer"):
        push(lake, student.policy_id, "me/kitchen", endpoint="http://127.0.0.1:9")
