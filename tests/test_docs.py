"""The docs are true: every view is described, every link leads somewhere, the README's targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flywheel.arrow import segments_to_arrow
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.views import VIEWS
from flywheel.filters.segments import segment
from flywheel.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_is_described_column_by_column(lake: Lake, view: str) -> None:
    page = (ROOT / "docs" / "sql.md").read_text()
    _, _, section = page.partition(f"\n## `{view}`\n")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert dict(rows) == VIEWS[view].columns
    assert list(dict(rows)) == lake.sql(f"from {view}").column_names
    assert f"A row is {VIEWS[view].row}." in section


@pytest.mark.parametrize(
    "query", re.findall(r"```sql\n(.+?)```", (ROOT / "docs" / "queries.md").read_text(), re.DOTALL)
)
def test_the_questions_that_users_ask_have_answers(lake: Lake, golden: list[Trajectory], query: str) -> None:
    lake.append(golden, "episodes")
    lake.append_facts(
        "segments", segments_to_arrow([part for one in golden for part in segment(one)]), "s", key=["index"]
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


@pytest.mark.minutes
def test_the_blocks_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "python.md").read_text().replace("data/notebook", str(tmp_path / "lake"))
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.+?)```", page, re.DOTALL):
        exec(block, names)
    assert str(names["student"].policy_id).startswith("flat-")
