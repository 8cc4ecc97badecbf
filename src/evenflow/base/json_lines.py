"""Log lines as JSON: one object a line, for programs that gather logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

FIELDS = "fields"
"""Attribute of a log record: what its line says beside the message, by name (``log.info(..., extra={"fields": {...}})``)."""


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger, message, and whatever else a record brings along. ``who``: the process, if named.

    Everything that is not ASCII is escaped: no name can end a line, move a cursor or break an encoding.
    """

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = who.rstrip(": ")

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._who:
            line["process"] = self._who
        fields = getattr(record, FIELDS, None)
        if isinstance(fields, Mapping):
            line |= {str(name): value for name, value in fields.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


__all__ = ["FIELDS", "JsonFormatter"]
