"""The layout holds: links import from anywhere, Hugging Face's datasets stays itself, knowledge flows one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("datasets", "distill", "filters", "flows")
LAYERS = {
    "trajectory": 0,
    "arrow": 0,
    "section": 0,
    "clusters": 0,
    "orphans": 0,
    "config": 0,
    "config_agents": 0,
    "config_distill": 0,
    "config_flows": 0,
    "errors": 0,
    "text": 0,
    "children": 0,
    "watchdog": 0,
    "environments": 1,
    "datasets": 1,
    "agents": 2,
    "filters": 3,
    "distill": 4,
    "serving": 5,
    "flows": 6,
    "console": 7,
    "output": 8,
    "shell": 9,
    "cli_agents": 9,
    "cli_flows": 9,
    "cli_lake": 9,
    "cli_formats": 9,
    "cli_verifiers": 9,
    "cli_students": 9,
    "cli": 10,
    "__main__": 11,
}


@pytest.mark.parametrize("folder", [".", "flows", ".."])
def test_both_datasets_import_from_anywhere(folder: str) -> None:
    code = (
        "import datasets, flywheel.datasets.lake as lake; "
        "assert hasattr(datasets, 'load_dataset'), datasets; assert hasattr(lake, 'Lake')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=(ROOT / folder).resolve(), check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_folders_are_links_without_an_init(stage: str) -> None:
    link = ROOT / "src" / "flywheel" / stage
    assert link.is_symlink()
    assert link.resolve() == ROOT / stage
    assert not (ROOT / stage / "__init__.py").exists()


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("flywheel.")}


def _modules() -> list[tuple[str, Path]]:
    found = [(stage, path) for stage in STAGES for path in sorted((ROOT / stage).glob("**/*.py"))]
    source = ROOT / "src" / "flywheel"
    for folder in ("agents", "environments", "serving"):
        found += [(folder, path) for path in sorted((source / folder).glob("*.py"))]
    return found + [(path.stem, path) for path in sorted(source.glob("*.py")) if path.stem != "__init__"]


@pytest.mark.parametrize(("layer", "path"), _modules(), ids=lambda value: getattr(value, "stem", value))
def test_dependencies_run_one_way(layer: str, path: Path) -> None:
    for name in _imports(path):
        imported = name.split(".")[1]
        same = imported == layer
        assert same or LAYERS[imported] < LAYERS[layer] or LAYERS[layer] == 0 == LAYERS[imported], (
            f"{path} imports {name}"
        )


@pytest.mark.parametrize("module", ["flywheel.agents.prompts", "flywheel.agents.context", "flywheel.distill.examples"])
def test_prompts_and_rows_cannot_reach_privileged_facts(module: str) -> None:
    """Neither imports the door, nor names `facts`."""
    path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    text = path.read_text()
    assert "privileged" not in text
    assert "facts" not in text


def test_no_module_is_overgrown() -> None:
    assert [str(path) for _, path in _modules() if len(path.read_text().splitlines()) > 400] == []
