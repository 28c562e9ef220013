"""Structured logs: one JSON object a line, on stderr. Fields come from `extra`; secrets have no field."""

from __future__ import annotations

import datetime
import logging
import sys
from collections.abc import Mapping

import msgspec

FIELDS = ("job_id", "attempt", "task", "queue", "worker", "manager", "epoch", "request_id")


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, the process's fields, the record's fields."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        for field in FIELDS:
            value = getattr(record, field, None)
            if value is not None:
                line[field] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_as_json(level: str = "INFO", **fields: str) -> None:
    """Send this process's `jobsvc` logs to stderr as JSON lines that carry these fields."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(fields))
    logger = logging.getLogger("jobsvc")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
