"""The base of every group of settings: frozen, bounded numbers, unknown keys refused."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
PASSWORD = re.compile(r"://[^/@]*:[^/@]*@|[?&](password|passfile|sslpassword)=")
"""In an address: settings are stored, and hold none."""


class Section(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
