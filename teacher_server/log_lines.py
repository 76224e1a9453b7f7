"""How the log is written: one line per event, for people or as JSON. Events may carry ``extra={"fields": {...}}``."""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from time import localtime, strftime
from typing import Any

from orjson import dumps

PLAIN = re.compile(r"[A-Za-z0-9_./:{}+-]+")
"""Values that need no quotes."""
ESCAPES = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))}
"""Nothing that somebody sent moves a cursor or begins a line."""


class LogFormat(StrEnum):
    """Who reads the log."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class TextLines(logging.Formatter):
    """Time, level, logger, message, then ``name=value`` for every field."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._second, self._written = -1, ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line; a traceback follows it."""
        line = super().formatMessage(record)
        fields = "".join([f" {name}={_plain(value)}" for name, value in _fields(record).items()])
        return (line if line.isprintable() else line.translate(ESCAPES)) + fields

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """Local time and milliseconds; the second is written out once for all its events."""
        second = int(record.created)
        if second != self._second:
            self._second, self._written = second, strftime("%Y-%m-%d %H:%M:%S", localtime(second))
        return f"{self._written},{int(record.msecs):03d}"


class JsonLines(logging.Formatter):
    """One JSON object per line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The object: time (UTC), level, logger, message, the fields, and ``exception`` where there was one."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return dumps(line, default=str).decode()
        # Text that is no valid Unicode, such as a lone surrogate from a file name.
        except TypeError:
            return json.dumps(line, default=str)


def set_up_log(form: LogFormat, *, level: LogLevel) -> None:
    """Have the process's own handler write in this form; ``level`` is that of the server, libraries stay at warning."""
    formatter = JsonLines() if form is LogFormat.JSON else TextLines()
    for handler in logging.getLogger().handlers:
        # Exactly the one that the entry point made: what tests hang in keeps its form.
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(formatter)
    logging.getLogger("teacher_server").setLevel(level.upper())


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _plain(value: object) -> str:
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)
