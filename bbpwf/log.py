"""Structured logging: one JSON object a line for machines, short lines for people; secrets masked in both.

Only entry points call :func:`configure`. Modules use ``logging.getLogger(__name__)`` and pass ids in
``extra={"run_id": ..., "job_key": ...}``.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from bbpwf.redact import Redactor

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _MaskingFormatter(logging.Formatter):
    def __init__(self, redactor: Redactor, *, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        self._redactor = redactor
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self._as_json:
            return self._redactor.mask(super().format(record))
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return self._redactor.mask(json.dumps(entry, default=str, ensure_ascii=False))


def configure(redactor: Redactor, *, level: str = "INFO", as_json: bool = False, stream: TextIO | None = None) -> None:
    """Send all logging of this process to ``stream`` (stderr by default), masked by ``redactor``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_MaskingFormatter(redactor, as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("paramiko", "botocore", "urllib3", "boto3", "s3transfer"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
