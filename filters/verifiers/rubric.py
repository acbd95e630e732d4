"""A user's rubric for the judge: what a good run does, item by item, in a TOML file.

[[items]]
text = "The refund went to the order that the customer named."
points = 60
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flywheel.environments.privileged import Milestone
from flywheel.errors import ConfigError, reason_of
from flywheel.filters.verifiers.privileged import MOST_ITEMS


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1)
    points: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class _Rubric(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[_Item] = Field(min_length=1, max_length=MOST_ITEMS)


def read_rubric(path: Path) -> tuple[Milestone, ...]:
    """The items of a rubric as milestones whose points sum to 100. Raises `ConfigError` for what is no rubric."""
    try:
        rubric = _Rubric.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"the rubric {path} cannot be read: {reason_of(error)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the rubric {path}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise ConfigError(f"the rubric {path} is not TOML: {' '.join(str(error).split())}") from error
    total = sum(item.points for item in rubric.items)
    return tuple(Milestone(item.text, "", 100 * item.points / total) for item in rubric.items)
