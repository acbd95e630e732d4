"""Templates to HTML: every text is escaped, and control characters are shown instead of obeyed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from flywheel import charts
from flywheel.text import printable
from flywheel.ui import run

HERE = Path(__file__).parent
_STEP = re.compile(r"\bstep (\d+)\b")


def make_environment(lake_name: str) -> Environment:
    """The templates of one lake's pages. What a form posts back goes through `posted`: as it is, and escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "when": _when,
        "number": _number,
        "share": _share,
        "svg": Markup,
        "colour": charts.colour,
        "pretty": run.pretty,
        "with_steps": _with_steps,
        "posted": escape,
    }
    environment.globals |= {"lake": lake_name, "fold": run.FOLD, "base": ""}
    return environment


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _with_steps(evidence: str) -> Markup:
    """A text in which every step that it names is a link to it."""
    return Markup(_STEP.sub(r'<a href="#step-\1">\g<0></a>', str(escape(printable(evidence)))))


def _when(seconds: float | None) -> str:
    """A time to read; nothing where nobody knows it, or where it is none."""
    try:
        return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return ""


def _number(value: float | None, digits: int = 3) -> str:
    """A number to read; nothing where nobody knows it."""
    if value is None:
        return ""
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
