"""Running a turn on while its Prefect server is down."""

from __future__ import annotations

from typing import Any

from httpx import TransportError

from flywheel.config.root import Config
from flywheel.errors import InfrastructureError, reason_of
from flywheel.flows.api import await_api
from flywheel.flows.turn import turn

RETRIES = 3
UNREACHED = "Failed to reach API"
"""How Prefect's client says, in a bare RuntimeError, that nothing answers."""


def turn_through_outages(config: Config, number: int) -> dict[str, Any]:
    """A turn, begun anew where the Prefect server went away under it: what is done is found.

    Raises `InfrastructureError` if it went away again and again, and what `turn` raises.
    """
    reason = ""
    for _ in range(RETRIES):
        try:
            return turn(config, number)
        except (TransportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and UNREACHED not in str(error):
                raise
            reason = reason_of(error)
        await_api()
    raise InfrastructureError(f"the Prefect server went away {RETRIES} times ({reason}); the same command goes on")
