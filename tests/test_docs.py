"""The docs are true: every view is described, every link leads somewhere, the README's targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flywheel.datasets.lake import Lake
from flywheel.datasets.views import VIEWS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_is_described_with_columns_that_it_has(lake: Lake, view: str) -> None:
    row = re.search(rf"^\| `{view}` \|[^|]*\|(.*)\|$", (ROOT / "docs" / "sql.md").read_text(), re.MULTILINE)
    assert row is not None
    columns = set(lake.sql(f"from {view}").column_names)
    named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row.group(1))))
    assert named
    assert named <= columns


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
