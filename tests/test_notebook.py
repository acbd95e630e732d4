"""The notebook runs from its first cell to its last on a small lake."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from flywheel.agents.scripted import Expert, Mistakes
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.filters.curate import curate
from flywheel.trajectory import Trajectory
from tests.conftest import ROOT, Play, World


@pytest.mark.minutes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the messages between notebook and kernel
def test_the_notebook_runs(
    smoke: Config, lake: Lake, golden: list[Trajectory], play: Play, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clumsy = play(Expert(world, Mistakes(wrong_action=0.25)), 8)
    lake.append([*golden, *clumsy], "episodes")
    curate(smoke, lake)
    monkeypatch.setitem(os.environ, "FLYWHEEL_LAKE", str(lake.root))
    monkeypatch.setitem(os.environ, "FLYWHEEL_CONFIG", str(Path(ROOT, "configs", "smoke.toml")))
    notebook = nbformat.read(ROOT / "examples" / "look.ipynb", as_version=4)
    done = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 5
    assert any("parameters, from" in output.get("text", "") for output in outputs)
    assert any("against" in output.get("text", "") for output in outputs)
