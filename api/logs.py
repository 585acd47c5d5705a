"""Structured logs: one JSON object a line, without personal data.

What could hold some is left out: the text of an exception that nobody foresaw (it may quote a
value) and the paths of requests. The place where it happened, and the request's id, stay.
"""

from __future__ import annotations

import datetime as dt
import logging
import traceback
from typing import Any

import msgspec
from gunicorn.glogging import Logger


class NoAccessLog(Logger):
    """gunicorn's logger, that does not put together the lines of an access log nobody keeps."""

    @property
    def access_log_enabled(self) -> bool:
        """Where there is a logging configuration, gunicorn takes it that there is such a log."""
        return False


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON; of an exception its type and where it happened."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``."""
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(
                "T", "milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, trace = record.exc_info
            line["exception"] = f"{kind.__module__}.{kind.__qualname__}"
            line["stack"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(trace)
            ]
        return msgspec.json.encode(line).decode()


def config(level: str) -> dict[str, Any]:
    """Return what `logging.config.dictConfig` takes: all to stderr, from ``level`` on."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            # It logs each lost connection at length; the store says what follows from it.
            "cassandra": {"level": "ERROR"},
        },
    }
