"""Events of a flywheel: Prefect events, to which automations listen, and log lines.

Every event is about one resource, `flywheel.NAME`; its name is `flywheel.` and what happened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.url import LakeUrl
from flywheel.datasets.versions.versions import DatasetVersion
from flywheel.flows.logs import LOGGER
from flywheel.trajectory import digest

COLLECTED, CURATED, DISTILLED = "collect.finished", "curate.finished", "distill.finished"
EVALUATED, DECIDED, TURNED = "evaluate.finished", "gate.decided", "turn.finished"
READY = "trajectories.ready"
"""Enough verified trajectories taught no student yet."""
CROWNED, DROPPED, SPENT = "champion.changed", "slice.dropped", "budget.spent"
TAGGED = "dataset.created"
NO_PLANNER = "planner.unnamed"
"""No segment of what teaches names a subgoal, so that no hierarchical student was made."""
MENDED = "lake.mended"
"""A file was not what had been written, and was set aside."""


def resource(name: str) -> str:
    """The resource id of a flywheel."""
    return f"flywheel.{name}"


def lake_resource(place: LakeUrl) -> str:
    """The resource id of the lake at a place, the same for all who use it."""
    url = place.catalog
    where = Path(url.database or "").absolute() if url.get_backend_name() == "sqlite" else url.render_as_string()
    return f"flywheel.lake.{digest(where)}"


def tell(name: str, happened: str, **payload: Any) -> None:
    """Tell that something happened to the flywheel of a name. Never fails work that is done."""
    _send({"prefect.resource.id": resource(name), "prefect.resource.name": name}, happened, payload)


def tell_of_dataset(lake: Lake, dataset: DatasetVersion) -> None:
    """Emit an event for a new dataset version, if there is a Prefect server."""
    from flywheel.flows.api import heard

    about = {
        "prefect.resource.id": lake_resource(lake.place),
        "prefect.resource.name": lake.name,
        "dataset": dataset.name,
    }
    with heard(lake.root) as somebody:
        if somebody:
            _send(about, TAGGED, {"title": dataset.title, "trajectories": dataset.trajectories})


def _send(about: dict[str, str], happened: str, payload: dict[str, Any]) -> None:
    LOGGER.info(happened, extra={"flywheel": about["prefect.resource.name"], **payload})  # no key may be `message`
    if not os.environ.get("PREFECT_API_URL"):
        return
    from prefect.events import emit_event

    try:
        emit_event(f"flywheel.{happened}", resource=about, payload=payload)
    except Exception as error:
        LOGGER.warning("an event was not sent", extra={"event": happened, "error": str(error)})
