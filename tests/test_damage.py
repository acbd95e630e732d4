"""Damage and odd places: a lake says what is wrong, is read where it cannot be written, and runs no stray file."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flywheel.datasets.lake.engines import still_engine
from flywheel.datasets.lake.files import flaw_of
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import LakeError
from flywheel.runtime.subprocesses import child_environment, python_command
from flywheel.trajectory import Trajectory
from tests.conftest import ROOT

FLYWHEEL = str(Path(sys.executable).with_name("flywheel"))


def sql(lake: Path, query: str, *more: str) -> subprocess.CompletedProcess[str]:
    call = [FLYWHEEL, "sql", query, "--data-dir", str(lake), "--format", "csv", *more]
    return subprocess.run(call, capture_output=True, text=True)


@pytest.fixture
def filled(tmp_path: Path, golden: list[Trajectory]) -> Path:
    with Lake(tmp_path / "lake", create=True) as lake:
        lake.append(golden, "episodes")
    return tmp_path / "lake"


@pytest.mark.parametrize("damage", ["is empty", "is missing", "lists no files"])
def test_a_lost_catalog_is_damage_and_no_empty_lake(filled: Path, damage: str) -> None:
    for file in filled.glob("catalog.sqlite*"):
        file.unlink()
    if damage == "is empty":
        (filled / "catalog.sqlite").touch()
    elif damage == "lists no files":
        with closing(sqlite3.connect(filled / "catalog.sqlite")) as other:
            other.execute("create table something (else_ integer)")
    done = sql(filled, "select count(*) from trajectories")
    assert done.returncode == 2
    assert f"catalog.sqlite {damage}, and files of a lake lie beside it" in done.stderr
    with pytest.raises(LakeError, match="flywheel lake restore"):
        Lake(filled, create=True)
    assert len(list(filled.glob("parts/*.parquet"))) == 2


@pytest.mark.parametrize("damage", ["footer", "bytes"])
def test_sql_answers_from_no_damaged_file(filled: Path, damage: str) -> None:
    (file,) = filled.glob("parts/*.trajectories.parquet")
    data = bytearray(file.read_bytes())
    place = len(data) - 2 if damage == "footer" else 40
    data[place] ^= 0xFF
    file.write_bytes(data)
    done = sql(filled, "select count(*) from trajectories")
    assert done.returncode == 2
    assert "broken Parquet file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_footer_is_cheap_to_check_and_a_checksum_is_sure(filled: Path) -> None:
    (file,) = filled.glob("parts/*.trajectories.parquet")
    data = bytearray(file.read_bytes())
    whole = hashlib.sha256(data).hexdigest()
    size = len(data)
    assert flaw_of(str(file), None, size) == flaw_of(str(file), None, size, whole) == ""
    data[40] ^= 0xFF
    file.write_bytes(data)
    assert flaw_of(str(file), None, size) == ""
    assert flaw_of(str(file), None, size, whole) == "has other bytes than were written"
    assert "has other bytes" in sql(filled, "from trajectories", "--verify").stderr
    file.write_bytes(data[:-8] + b"more" + data[-8:])
    assert flaw_of(str(file), None, size) == f"has {size + 4} bytes instead of {size}"


@pytest.fixture
def mounted(filled: Path, tmp_path: Path) -> Iterator[Path]:
    """The lake on a read-only mount."""
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        shutil.copytree(filled, place / "lake")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield place / "lake"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_mount_is_read(mounted: Path, golden: list[Trajectory]) -> None:
    assert sql(mounted, "select count(*) as n from trajectories").stdout == "n\n8\n"
    with Lake(mounted) as lake:
        assert lake.trajectories([golden[0].trajectory_id]) == golden[:1]
        assert lake.append(golden, "again") == 0
        with pytest.raises(LakeError, match="read-only"), lake.catalog.write():
            pass


def test_what_stands_only_in_the_log_is_read_too(tmp_path: Path, golden: list[Trajectory]) -> None:
    """A catalog that was copied while it was open: its newest commits are in the write-ahead log."""
    lake = Lake(tmp_path / "lake", create=True)
    lake.append(golden, "episodes")
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "lake", copied)
    lake.close()
    assert (copied / "catalog.sqlite-wal").stat().st_size
    engine = still_engine(copied / "catalog.sqlite")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from trajectory").scalar() == 8
    engine.dispose()


HOSTILE = ("secrets", "json", "torch", "random", "tempfile", "prefect", "numpy", "multiprocessing", "flywheel")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder of files that say so when they are run."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'sprung')!r}, 'a').write({name!r})\n")
    return folder


def test_children_import_nothing_of_the_current_folder(trap: Path) -> None:
    code = "import secrets, json, random, tempfile, subprocess, sys; "
    nested = code + "subprocess.run([sys.executable, '-c', 'import secrets, json, random'], check=True)"
    for command in (python_command("-c", nested), python_command("-m", "flywheel", "sql", "--help")):
        subprocess.run(command, cwd=trap, env=child_environment(), check=True, capture_output=True)
    assert not (trap / "sprung").exists()


@pytest.mark.slow
def test_a_whole_turn_runs_no_file_of_the_current_folder(trap: Path, tmp_path: Path) -> None:
    sets = ["collect.episodes=8", "iterations=1", "environment.workers=1", "environment.processes=2"]
    sets += ["evaluate.dev_tasks=2", "evaluate.test_tasks=2", f"data_dir={tmp_path / 'lake'}"]
    call = [FLYWHEEL, "run", str(ROOT / "configs" / "smoke.toml"), *(part for one in sets for part in ("--set", one))]
    done = subprocess.run(call, cwd=trap, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (trap / "sprung").exists()
