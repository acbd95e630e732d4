"""Reporting how a session ended, from wherever it is known."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError

from flywheel.errors import PrerequisiteError, RecordError, reason_of

URL = "FLYWHEEL_GATEWAY_URL"
"""The environment variable that says where the gateway is."""
TIMEOUT_SECONDS = 30


def report(
    session: str,
    *,
    success: bool | None = None,
    score: float | None = None,
    comment: str = "",
    who: str = "",
    final: bool = True,
    gateway: str = "",
) -> str:
    """Report how a session ended; the outcome's id. `final`: no further call of it is waited for.

    `gateway`: its base URL, with /v1; else FLYWHEEL_GATEWAY_URL, else the one on this machine. Raises `RecordError` for
    what the gateway refuses, as an unknown session, and `PrerequisiteError` where none answers.
    """
    base = gateway or os.environ.get(URL, "http://127.0.0.1:8400/v1")
    outcome: dict[str, Any] = {"comment": comment, "who": who, "final": final}
    outcome |= {name: value for name, value in (("success", success), ("score", score)) if value is not None}
    headers = {"content-type": "application/json"}
    if key := os.environ.get("FLYWHEEL_GATEWAY_KEY"):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{base}/sessions/{session}/outcome", json.dumps(outcome).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
            return str(json.load(reply)["id"])
    except HTTPError as error:
        with error:
            raise RecordError(json.load(error)["error"]["message"]) from None
    except URLError as error:
        raise PrerequisiteError(f"no gateway answers at {base}: {reason_of(error)}") from None
