"""The docs are true: every view is described, every link leads somewhere, the README's targets exist."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flywheel.arrow import segments_to_arrow
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.views import VIEWS
from flywheel.distill.algorithms import catalog
from flywheel.distill.stage import distill
from flywheel.filters.curate import curate
from flywheel.filters.segments import segment
from flywheel.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_reference_pages_are_the_code_s() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert {page: page.read_text() for page in generate["pages"]()} == generate["pages"](), "run: make docs"


def test_the_site_builds_without_a_warning_and_asks_nobody_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?https?://", page.read_text()) == [], page


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_has_the_columns_that_are_described(lake: Lake, view: str) -> None:
    assert list(VIEWS[view].columns) == lake.sql(f"from {view}").column_names


@pytest.mark.parametrize(
    "query", re.findall(r"```sql\n(.+?)```", (ROOT / "docs" / "queries.md").read_text(), re.DOTALL)
)
def test_the_questions_that_users_ask_have_answers(lake: Lake, golden: list[Trajectory], query: str) -> None:
    lake.append(golden, "episodes")
    lake.append_facts(
        "segments",
        segments_to_arrow([part for trajectory in golden for part in segment(trajectory)]),
        "s",
        key=["index"],
    )
    lake.sql(query)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_has_five_queries_and_its_make_targets_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(re.findall(r'flywheel sql "', readme)) == 5
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    if "experiments" in page.parts:
        return  # they name what was there when they were made
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|toml))`", page.read_text())
    rooms = (ROOT, ROOT / "src" / "flywheel")
    assert [name for name in named if not any((room / name).exists() for room in rooms)] == []


def test_every_test_file_has_a_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## Which tests hold which room")[2]
    named = re.findall(r"`(\w+)`", page)
    assert sorted(named) == sorted(path.stem.removeprefix("test_") for path in ROOT.glob("tests/test_*.py"))


def _run_blocks(page: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page's blocks of Python define, run one after the other as one module."""
    module = ModuleType("blocks")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in re.findall(r"```python\n(.+?)```", page, re.DOTALL):
        exec(compile(block, "block", "exec", dont_inherit=True), vars(module))
    return vars(module)


@pytest.mark.minutes
def test_the_blocks_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "python.md").read_text().replace("data/notebook", str(tmp_path / "lake"))
    assert _run_blocks(page, monkeypatch)["student"].kind == "flat"


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the recipe's settings are not in the union here
def test_the_recipes_for_extensions_work(
    lake: Lake, golden: list[Trajectory], smoke: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, verifier and format are held by the page's own assertions; the algorithm makes a student here."""
    monkeypatch.setattr(catalog, "ALGORITHMS", dict(catalog.ALGORITHMS))
    names = _run_blocks((ROOT / "docs" / "extending.md").read_text(), monkeypatch)
    lake.append(golden, "episodes")
    curate(smoke, lake)
    settings = names["SmoothConfig"](learning_rate=1e-3)
    train = smoke.train.model_copy(update={"finetune": settings})
    cloned = distill(smoke, lake, "flat", 1)
    smooth = distill(smoke.model_copy(update={"train": train}), lake, "flat", 1)
    assert smooth.parent_policy_id == cloned.policy_id
    assert smooth.metrics["flat_first_loss"] > cloned.metrics["flat_last_loss"] * 0.9
