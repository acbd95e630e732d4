"""Imports within bounds: lines of any length, documents of any depth, images of any kind, and files that are none."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel.datasets.formats import atif
from flywheel.datasets.formats.exporting import export, select_ids
from flywheel.datasets.formats.images import media_type_of
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.formats.parsing import DEEPER, DEPTH, parsed
from flywheel.datasets.formats.records import ReadContext
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import RecordError
from flywheel.trajectory import Trajectory

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}], "model": "m"}
PIXEL = b"\x89PNG\r\n\x1a\n and no more"


def lines(path: Path, *records: Any) -> Path:
    path.write_bytes(
        b"\n".join(record if isinstance(record, bytes) else json.dumps(record).encode() for record in records) + b"\n"
    )
    return path


def with_image(path: str) -> dict[str, Any]:
    """An ATIF document whose user shows a picture."""
    part = {"type": "image", "source": {"media_type": "image/png", "path": path}}
    steps = [
        {"step_id": 1, "source": "user", "message": [{"type": "text", "text": "look"}, part]},
        {"step_id": 2, "source": "agent", "message": "seen"},
    ]
    return {"schema_version": "ATIF-v1.6", "session_id": "s", "agent": {"name": "a", "version": "1"}, "steps": steps}


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "code"), [([GOOD], 0), ([GOOD, b"{"], 0), ([b"{", b"5"], 4)])
def test_the_exit_code_tells_whether_anything_came_in(tmp_path: Path, records: list[Any], code: int) -> None:
    path = lines(tmp_path / "log.jsonl", *records)
    call = ["import", str(path), "--format", "chat", "--data-dir", str(tmp_path / "lake")]
    found, told = run(*call)
    assert found == code
    assert f"quarantined: {len(records) - (records[0] is GOOD)}" in told
    assert run(*call)[0] == code  # what is known came in once


# -- lines and documents -----------------------------------------------------------------------------------------------


def test_a_line_that_is_too_long_is_skipped_and_the_rest_is_read(lake: Lake, tmp_path: Path) -> None:
    long = {**GOOD, "pad": "x" * 5000}
    path = lines(tmp_path / "log.jsonl", GOOD, long, {**GOOD, "n": 2}, long)
    done = import_files(lake, [path], "chat", most=1000)
    assert (done.trajectories, done.quarantined) == (2, 2)
    assert done.reasons[0] == f"{path}:2: longer than 1000 bytes"
    assert "longer than" in import_files(lake, [lines(tmp_path / "one.json", long)], "chat", most=1000).reasons[0]


def test_memory_stays_whatever_the_length_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # a line of a gigabyte that takes no room on the disk
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + json.dumps(GOOD).encode() + b"\n")
    code = (
        "import resource, sys; from pathlib import Path; from flywheel.datasets.formats.importing import import_files; "
        "from flywheel.datasets.lake.lake import Lake; lake = Lake(sys.argv[2], create=True); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "done = import_files(lake, [Path(sys.argv[1])], 'chat'); "
        "print(done.trajectories, done.quarantined, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    call = [sys.executable, "-c", code, str(path), str(tmp_path / "lake")]
    told = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
    assert told[:2] == ["1", "1"]
    assert int(told[2]) < 300 << 10


@pytest.mark.parametrize(
    ("opening", "closing", "depth"),
    [("[", "]", 600), ('{"a":', "}", 900), ("[", "]", 20_000)],
    ids=["list", "dict", "deep"],
)
def test_depth_stops_nobody(lake: Lake, tmp_path: Path, opening: str, closing: str, depth: int) -> None:
    deep = f'{json.dumps(GOOD)[:-1]}, "x": {opening * depth}1{closing * depth}}}'.encode()
    done = import_files(lake, [lines(tmp_path / "log.jsonl", deep, {**GOOD, "n": 2})], "chat")
    assert done.trajectories == 2 - done.quarantined
    assert done.quarantined == (depth > 1000)
    assert done.unread[DEEPER] == (depth < 1000)
    export(lake, tmp_path / "out", "chat", select_ids(lake, "true"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=20,
)


@given(json_values, st.integers(0, DEPTH + 50))
def test_what_is_not_too_deep_is_read_as_it_is(value: Any, depth: int) -> None:
    nested = value
    for _ in range(depth):
        nested = [nested]
    source = ReadContext()
    found = parsed(json.dumps(nested).encode(), source)
    assert found == nested or source.unread
    if depth + 20 < DEPTH:
        assert not source.unread


@pytest.mark.parametrize("text", [b"NaN", b"[1e999]", b"[-Infinity]", b"\xff", b'{"a": 1', b"9" * 5000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(RecordError, match="not JSON"):
        parsed(text, ReadContext())


# -- files that are none -----------------------------------------------------------------------------------------------


def test_pipes_links_and_folders_are_not_read(lake: Lake, tmp_path: Path) -> None:
    folder, secret = tmp_path / "in", lines(tmp_path / "secret.jsonl", {**GOOD, "model": "secret"})
    folder.mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "link.jsonl").symlink_to(secret)
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "circle.jsonl").symlink_to(folder / "circle.jsonl")
    (folder / "folder.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.jsonl"))
    lines(folder / "good.jsonl", GOOD)
    done = import_files(lake, [folder], "chat")
    assert (done.trajectories, done.quarantined) == (1, 5)
    told = sorted(reason.partition(":1: ")[2] for reason in done.reasons)
    assert told[:2] == ["a link to a file elsewhere; name that file itself"] * 2
    assert [reason.partition(":")[0] for reason in told[2:]] == ["cannot be opened"] * 2 + ["not a regular file"]


def test_a_record_of_several_runs_keeps_them_all(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    children = [atif.write(trajectory, {}) for trajectory in golden[:2]]
    parent = {**with_image("gone.png"), "schema_version": "ATIF-v1.7", "subagent_trajectories": children}
    parent["steps"][0]["message"] = "look"
    (tmp_path / "run.json").write_text(json.dumps(parent))
    assert import_files(lake, [tmp_path / "run.json"], "atif").trajectories == 3
    assert import_files(lake, [tmp_path / "run.json"], "atif").known == 3


# -- images ------------------------------------------------------------------------------------------------------------


def test_images_are_named_by_what_they_are(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\xff\xd8\xff jpeg")
    (tmp_path / "run.json").write_text(json.dumps(with_image("a.png")))
    import_files(lake, [tmp_path / "run.json"], "atif")
    assert lake.sql("select media_type from images").to_pylist() == [{"media_type": "image/jpeg"}]


@pytest.mark.parametrize("path", ["gone.png", "a\x00b", "text.png", "huge.png"])
def test_a_record_comes_in_without_an_image_that_cannot_be_read(lake: Lake, tmp_path: Path, path: str) -> None:
    (tmp_path / "text.png").write_text("#!/bin/sh")
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(PIXEL)
        file.truncate(40 << 20)
    (tmp_path / "run.json").write_text(json.dumps(with_image(path)))
    done = import_files(lake, [tmp_path / "run.json"], "atif")
    assert (done.trajectories, sum(done.unread.values())) == (1, 1)
    assert lake.sql("select count(*) as n from images").to_pylist() == [{"n": 0}]
    assert "look\n[" in lake.sql("select observation from steps").to_pylist()[0]["observation"]


@pytest.mark.parametrize("kind", ["outside", "link", "pipe", "device", "hidden in the middle"])
def test_images_elsewhere_are_refused(lake: Lake, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PIXEL)
    path = {"outside": "../secret.png", "hidden in the middle": "sub/../../secret.png"}.get(kind, "x.png")
    if kind == "link":
        (folder / "x.png").symlink_to(tmp_path / "secret.png")
    elif kind == "pipe":
        os.mkfifo(folder / "x.png")
    elif kind == "device":
        (folder / "x.png").symlink_to("/dev/zero")
    (folder / "run.json").write_text(json.dumps(with_image(path)))
    done = import_files(lake, [folder / "run.json"], "atif")
    assert (done.trajectories, done.quarantined) == (0, 1)


def test_a_data_url_must_hold_an_image(lake: Lake, tmp_path: Path) -> None:
    def chat(url: str) -> dict[str, Any]:
        content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "seen"}]}

    good = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    bad = ["http://x/y.png", "data:image/png;base64,AA", "data:text/html;base64,AAAA", "file:///etc/passwd", ""]
    done = import_files(lake, [lines(tmp_path / "log.jsonl", *map(chat, [good, *bad]))], "chat")
    assert (done.trajectories, sum(done.unread.values())) == (6, 5)
    assert lake.sql("select count(*) as n from images").to_pylist() == [{"n": 1}]


@given(st.binary(max_size=16))
def test_bytes_are_an_image_by_how_they_begin(data: bytes) -> None:
    assert media_type_of(b"GIF89a" + data) == "image/gif"
    assert media_type_of(b"RIFF1234WEBP" + data) == "image/webp"
    assert media_type_of(b"<svg" + data) is None


# -- exports -----------------------------------------------------------------------------------------------------------


def test_what_a_format_cannot_hold_is_left_out_and_told(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    odd = dataclasses.replace(golden[0], score=float("nan"))
    lake.append([odd, golden[1]], "episodes")
    left: dict[str, str] = {}
    ids = [odd.trajectory_id, golden[1].trajectory_id]
    assert export(lake, tmp_path / "out", "chat", ids, leave_out=left.__setitem__) == {"chat.jsonl": 1}
    assert list(left) == [odd.trajectory_id]
    assert "JSON compliant" in left[odd.trajectory_id]
    call = ["export", str(tmp_path / "two"), "--format", "chat", "--data-dir", str(lake.root)]
    code, told = run(*call)
    assert code == 0
    assert "1 trajectories do not fit chat and were left out" in told
