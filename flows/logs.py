"""The log on stderr: one line an event, as text or as JSON."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter

from flywheel.datasets.lake.redaction import redact

LOGGER = logging.getLogger("flywheel")
LOG_FORMAT = "FLYWHEEL_LOG"
"""The environment variable that asks for a log on stderr: text or json. Child processes inherit it."""
_USUAL = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)
"""Attributes that every record has."""
FOREIGN = "_ray_timestamp_ns"
"""What Ray adds to every record of a process."""


def log_to_stderr(wanted: str | None = None) -> None:
    """Log to stderr as text or JSON lines, if `wanted` or FLYWHEEL_LOG says so. Children do the same."""
    form = wanted or os.environ.get(LOG_FORMAT, "")
    if not form or LOGGER.handlers:
        return
    os.environ[LOG_FORMAT] = form
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        from pythonjsonlogger.core import RESERVED_ATTRS
        from pythonjsonlogger.json import JsonFormatter

        fields = {"asctime": "time", "levelname": "level", "message": "event"}
        formatter: logging.Formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(message)s", rename_fields=fields, reserved_attrs=[*RESERVED_ATTRS, FOREIGN]
        )
    else:
        formatter = _Plain("%(asctime)s %(message)s")
    handler.setFormatter(WithoutSecrets(formatter))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


class WithoutSecrets(logging.Formatter):
    """What another formatter writes, tracebacks and all, without the secrets in it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._formatter.format(record), Counter())


class _Plain(logging.Formatter):
    """The message, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        left_out = {*_USUAL, "message", "asctime", FOREIGN}
        extra = {key: value for key, value in record.__dict__.items() if key not in left_out}
        return super().format(record) + "".join(f" {key}={value}" for key, value in extra.items())
