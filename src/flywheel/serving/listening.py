"""Where servers listen: on loopback, unless a key guards them."""

from __future__ import annotations

import ipaddress
import socket

from flywheel.errors import PrerequisiteError

GRACE_SECONDS = 10
"""How long requests that run may still take when a server stops."""
BACKLOG = 1024


SERVE_KEY = "FLYWHEEL_SERVE_KEY"
"""The environment variable of the API key that students' clients must bring."""
KEEP_ALIVE_SECONDS = 75
"""An idle connection stays open for longer than clients keep one (OpenAI's and httpx: 5 s), so that none sends its next
request into a connection that is just being closed."""


def is_loopback(host: str) -> bool:
    """Does an address reach this machine only?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `PrerequisiteError` where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named by its protocol: asyncio sends small answers at once (TCP_NODELAY) only where it can tell that it is TCP.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise PrerequisiteError(
            f"cannot listen at {host} port {port} ({error.strerror}); choose another with --port"
        ) from None
    return bound
