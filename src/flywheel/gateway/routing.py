"""Who answers: the model's server, or a student for a share of the sessions. Read anew while the gateway runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flywheel.datasets.formats.records import explain
from flywheel.errors import ConfigError
from flywheel.trajectory import digest

FILE = "gateway/route.json"
UPSTREAM, ROUTED = "upstream", "champion"
"""The model's server, and whichever student is in force."""


class Route(BaseModel):
    """Where calls go. `student`: its name at the students' server, or empty: the model's server answers everything.

    `share`: of the sessions, each as a whole. `shadow`: the student is asked beside the model's server, compared, and
    never shown. `confidence`: below this probability of its own words, and after `timeout` seconds, the model's server
    answers instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    student: str = ""
    share: float = Field(default=1.0, ge=0, le=1)
    shadow: bool = False
    confidence: float = Field(default=0.0, ge=0, le=1)
    timeout: float = Field(default=20.0, gt=0)

    def takes(self, session: str) -> bool:
        """Is a session answered by the student, or, as a shadow, is the student asked, too? Always the same."""
        return bool(self.student) and int(digest("route", session, size=4), 16) / 2**32 < self.share


def read_route(folder: Path) -> Route:
    """The route that is in force. Raises `ConfigError` for a file that holds none."""
    path = folder / FILE
    try:
        return Route.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return Route()
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no route: {error}; set one with flywheel route") from None


def write_route(folder: Path, route: Route) -> None:
    """Put a route in force; a running gateway follows within a second."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(route.model_dump_json())
    draft.replace(path)


@dataclass(slots=True)
class RouteInForce:
    """The route of a folder, as it changes. One that cannot be read changes nothing."""

    folder: Path
    route: Route
    problem: str = ""
    _changed_at: int = -1

    def look(self) -> None:
        """Read it again if its file has changed."""
        try:
            changed_at = (self.folder / FILE).stat().st_mtime_ns
        except OSError:
            changed_at = 0
        if changed_at == self._changed_at:
            return
        self._changed_at = changed_at
        try:
            self.route, self.problem = read_route(self.folder), ""
        except ConfigError as error:
            self.problem = str(error)
