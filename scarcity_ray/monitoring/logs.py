"""Log lines as JSON, with the ids of federation, round and operation, where they are asked for.

``SCARCITY_RAY_LOGS=json`` has the command write them; a program of its own calls `use_json_logs`, or gives
`JsonLines` to a handler. A line has the time, the level, the logger and the message, and what `tracing.span`
knows: ids, never a value of an update.

Guarantees:
    every_line_is_one_json_object: Whatever a message holds.
    lines_of_an_operation_share_its_id
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

from scarcity_ray.tracing import current

LOGS = "SCARCITY_RAY_LOGS"
"""The environment's switch for logs: ``json``."""


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **current(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def logs_are_json() -> bool:
    """Whether the environment asks for logs as JSON."""
    return os.environ.get(LOGS, "") == "json"


def use_json_logs(stream: TextIO | None = None, level: int = logging.INFO) -> logging.Handler:
    """Write the package's log lines as JSON to `stream`, standard error if None; the handler."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    package = logging.getLogger("scarcity_ray")
    package.addHandler(handler)
    package.setLevel(level)
    package.propagate = False
    return handler


__all__ = ["LOGS", "JsonLines", "logs_are_json", "use_json_logs"]
