"""Structured logs: one JSON object a line, on stderr; control characters cannot forge a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    "color_message",  # uvicorn's, for terminals
}


class JsonFormatter(logging.Formatter):
    """A record and its ``extra`` fields as one JSON line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; JSON escapes whatever would end or colour it."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logs(level: int = logging.INFO) -> None:
    """Send the package's and the web server's records to stderr as JSON lines.

    Called by the processes of ``alignbeam serve`` only: a library must not own its program's
    logging. What else would be written there is a record, too, or is not written.
    """
    from transformers.utils import logging as loader_log

    loader_log.set_verbosity_error()
    loader_log.disable_progress_bar()
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("alignbeam", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    for name in ("uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # The gate writes its own line per request, with the request's id.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
