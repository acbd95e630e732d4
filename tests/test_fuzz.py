"""The readers under a coverage-guided fuzzer: what earlier runs kept at once, ten minutes in the slow tier."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("atheris", reason="the fuzzer runs on Linux")


def fuzz(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Findings are written to the current folder."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz_readers.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)


def test_what_earlier_runs_found_is_read_or_refused(tmp_path: Path) -> None:
    done = fuzz(tmp_path, "--seconds", "1")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_ten_minutes_find_nothing(tmp_path: Path) -> None:
    done = fuzz(tmp_path, "--seconds", "600")
    assert done.returncode == 0, done.stderr[-2000:]
