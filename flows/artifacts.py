"""What each stage leaves in Prefect's UI: a table an iteration and stage, progress, the report and its plot.

None of it is needed: what lies in the lake counts, and a stage whose artifact was not written is done all the same.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flywheel.flows.logs import LOGGER

EVERY = 5.0
"""Seconds between two updates of a progress artifact."""


def publish(name: str, stage: str, iteration: int, rows: Sequence[dict[str, object]]) -> None:
    """A table under the key of the flywheel and stage, so that Prefect shows its versions as a history."""
    _tried(create_table_artifact, table=list(rows), key=_key(name, stage), description=f"iteration {iteration}")


def publish_report(name: str, iteration: int, files: dict[str, str]) -> None:
    """The report to read, a link to the page of it, and the plot of P(verified) by iteration."""
    report, page, picture = Path(files["md"]), Path(files["html"]).absolute(), Path(files["png"])
    about = f"iteration {iteration}"
    _tried(create_markdown_artifact, markdown=report.read_text(), key=_key(name, "report"), description=about)
    _tried(create_link_artifact, link=page.as_uri(), link_text=page.name, key=_key(name, "file"), description=about)
    plot = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    _tried(create_image_artifact, image_url=plot, key=_key(name, "plot"), description=f"P(verified) up to {about}")


@contextmanager
def progress_artifact(name: str, stage: str, iteration: int, total: int) -> Iterator[Callable[[int], None]]:
    """A callback for finished episodes of a stage, shown in Prefect's UI."""
    key, done, shown = _key(name, f"{stage}-progress"), 0, time.monotonic()
    made = _tried(create_progress_artifact, progress=0.0, key=key, description=f"{stage}, iteration {iteration}")

    def heard(count: int) -> None:
        nonlocal done, shown
        done += count
        if made and time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            _tried(update_progress_artifact, artifact_id=made, progress=min(100.0, 100.0 * done / max(total, 1)))

    yield heard
    if made:
        _tried(update_progress_artifact, artifact_id=made, progress=min(100.0, 100.0 * done / max(total, 1)))


def both(first: Callable[[int], None], second: Callable[[int], None]) -> Callable[[int], None]:
    """A callback that tells two."""

    def heard(count: int) -> None:
        first(count)
        second(count)

    return heard


def _key(name: str, stage: str) -> str:
    return f"{name}-{stage}".replace("_", "-")


def _tried(make: Callable[..., Any], **arguments: Any) -> Any:
    """What Prefect made, or None if it did not answer."""
    try:
        return make(**arguments)
    except Exception as error:
        LOGGER.warning("an artifact was not written", extra={"key": arguments.get("key"), "error": str(error)})
        return None
