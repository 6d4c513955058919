"""Structured logging: one JSON object a line for machines, short lines for people; secrets masked in both.

Only entry points call :func:`configure`. Modules use ``logging.getLogger(__name__)``; which run, task or job a line is
about is said by ``extra={"run_id": ..., "job_key": ...}``, or for all lines of a block by :func:`about`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from bbpwf.redact import Redactor

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default={})  # noqa: B039 never changed, only replaced


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Lines that are logged in this block are about these: ``run_id``, ``task_id``, ``job_key``."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


class _MaskingFormatter(logging.Formatter):
    def __init__(self, redactor: Redactor, always: Mapping[str, str], *, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
        self._redactor = redactor
        self._always = always
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
        entry.update({**self._always, **_ids.get()})
        entry.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return self._redactor.mask(json.dumps(entry, default=str, ensure_ascii=False))


def configure(
    redactor: Redactor,
    *,
    level: str = "INFO",
    as_json: bool = False,
    stream: TextIO | None = None,
    always: Mapping[str, str] | None = None,
) -> None:
    """Send all logging of this process to ``stream`` (stderr by default), masked by ``redactor``.

    ``always`` are ids that every line of the process is about.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_MaskingFormatter(redactor, always or {}, as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("paramiko", "botocore", "urllib3", "boto3", "s3transfer"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
