"""Recovery: one turn at a time on a lake, clocks that jump, files that rot, disks that are full or read-only."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel.arrow import routes_to_arrow
from flywheel.config.root import Config
from flywheel.config.student import StudentConfig
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.turn_lock import sole_turn
from flywheel.datasets.lake.url import parse_lake_url
from flywheel.datasets.maintenance.check import check, mend
from flywheel.errors import LakeAwayError, LakeError
from flywheel.policies.card import PolicyCard, decoding_of, limits_of
from flywheel.policies.registry import champion, crown, newest, register
from flywheel.trajectory import Route, RouteTo, Trajectory
from tests.served import FLYWHEEL, ROOT, SMOKE
from tests.servers import PostgreSQL

HOLDER = """
import sys, time
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.turn_lock import sole_turn
with sole_turn(Lake(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_turn_at_a_time_and_kill_9_lets_go(any_lake: Lake, request: pytest.FixtureRequest) -> None:
    url = any_lake.catalog.engine.url
    where = str(any_lake.root)
    if url.get_backend_name() == "postgresql":
        where = f"{url.set(drivername='postgresql').render_as_string()}?files={any_lake.place.files}"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, where], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LakeError, match="another turn runs"), sole_turn(any_lake):
            raise AssertionError("two turns at once")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    deadline = time.monotonic() + 10
    while True:  # PostgreSQL hears of it a moment later
        try:
            with sole_turn(any_lake):
                return
        except LakeError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_two_data_directories_on_one_catalog_share_its_turn(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.sqlite'}?files={tmp_path / 'files'}"
    one, other = (Lake(parse_lake_url(url, tmp_path / name), create=True) for name in ("one", "other"))
    with one, other, sole_turn(one), pytest.raises(LakeError, match="another turn runs"), sole_turn(other):
        raise AssertionError("two turns at once")


def test_a_turn_lets_go_when_it_ends_or_fails(any_lake: Lake) -> None:
    with pytest.raises(ZeroDivisionError), sole_turn(any_lake):
        raise ZeroDivisionError
    with sole_turn(any_lake):
        any_lake.sql("from trajectories")
    with sole_turn(any_lake):
        pass


def test_postgresql_that_dies_under_a_turn_ends_it_without_a_second_error(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    with Lake(f"{postgresql.new_database()}?files={tmp_path / 'files'}", create=True) as lake:
        with sole_turn(lake):
            postgresql.stop(signal.SIGKILL)
            postgresql.start()
        with sole_turn(lake):
            assert lake.snapshot() == 0


def test_a_turn_is_taken_again_however_often_postgresql_was_asked_in_vain(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    with (
        Lake(f"{postgresql.new_database()}?files={tmp_path / 'files'}", create=True) as lake,
        sole_turn(lake) as assure,
    ):
        postgresql.stop(signal.SIGKILL)
        try:
            for _ in range(3):
                with pytest.raises(LakeAwayError):
                    assure()
        finally:
            postgresql.start()
        assure()
        with pytest.raises(LakeError, match="another turn runs"), sole_turn(lake):
            raise AssertionError("two turns at once")


def _card(policy_id: str, parent: str, snapshot: int) -> PolicyCard:
    return PolicyCard(
        kind="flat",
        policy_id=policy_id,
        version="1",
        limits=limits_of(StudentConfig()),
        decoding=decoding_of(StudentConfig(), 0),
        iteration=1,
        snapshot=snapshot,
        condition="",
        trajectories=0,
        training_digest="",
        config_digest="",
        parent_policy_id=parent,
        base="",
        parameters=1,
        metrics={},
    )


def test_a_clock_that_is_set_back_makes_nothing_new_look_old(
    lake: Lake, golden: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.append(golden[:1], "before")
    one = golden[0].trajectory_id

    def routed(to: RouteTo, source: str) -> None:
        made = Route(one, to, True, source, source, created_at=lake.now())
        lake.append_facts("routes", routes_to_arrow([made]), source, key=("source",))

    routed(RouteTo.SUPERVISED, "first")
    register(lake, _card("flat-1", "", lake.snapshot()), [one])
    crown(lake, "flat-1", "before")
    yesterday = time.time() - 86_400
    monkeypatch.setattr(time, "time", lambda: yesterday)
    routed(RouteTo.QUARANTINE, "second")
    register(lake, _card("flat-2", "flat-1", lake.snapshot()), [one])
    crown(lake, "flat-2", "after")
    assert lake.sql("select route from trajectories")["route"].to_pylist() == ["quarantine"]
    assert newest(lake, "flat", 1) == "flat-2"
    assert champion(lake) == "flat-2"
    stamps = lake.sql("select created_at from champions order by id")["created_at"].to_pylist()
    assert stamps == sorted(stamps)
    at = lake.snapshot()
    assert lake.sql("select route from trajectories", at=at)["route"].to_pylist() == ["quarantine"]
    assert lake.sql("select route from trajectories", at=at - 1)["route"].to_pylist() == ["supervised"]


def test_a_rotten_file_is_found_named_and_set_aside(lake: Lake, golden: list[Trajectory], smoke: Config) -> None:
    for trajectory in golden[:3]:
        lake.append([trajectory], "one by one")
    (rotten,) = lake.parts_of([golden[1].trajectory_id])
    path = lake.root / "parts" / f"{rotten}.steps.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    never = smoke.model_copy(update={"lake": smoke.lake.model_copy(update={"check": "never"})})
    assert mend(never, lake) == []
    (found,) = mend(smoke, lake)
    assert found.file == f"{rotten}.steps.parquet"
    assert found.reason == "has other bytes than were written"
    assert list((lake.root / "quarantine").rglob(f"{rotten}.steps.parquet"))
    left = lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist()
    assert sorted(left) == sorted([golden[0].trajectory_id, golden[2].trajectory_id])
    assert lake.append(golden[:3], "again") == 1
    assert check(lake) == []


@pytest.fixture(params=["full", "read-only"])
def bad_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A file system of its own that has no room for a lake, or that cannot be written."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=64k" if request.param == "full" else "ro,size=64m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    yield str(request.param), folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.minutes
def test_a_bad_disk_is_told_in_one_line_and_nothing_starts(bad_disk: tuple[str, Path]) -> None:
    kind, folder = bad_disk
    told = subprocess.run(
        [FLYWHEEL, "run" if kind == "full" else "collect", str(SMOKE), "--set", f"data_dir={folder / 'data'}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert told.returncode == 2, told.stderr
    assert told.stderr.count("\n") == 1, told.stderr
    expected = {
        "full": ("MiB free", "No space left", "disk is full", "disk I/O"),
        "read-only": ("ead-only", "cannot be"),
    }
    assert any(word in told.stderr for word in expected[kind]), told.stderr
