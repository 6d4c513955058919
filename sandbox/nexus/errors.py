"""Delta's error answers."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

CONTEXT = "https://bluebrain.github.io/nexus/contexts/error.json"


class Refused(Exception):
    """Delta says no: HTTP status, ``@type`` and ``reason`` of the body, and what else it holds."""

    def __init__(self, status: int, kind: str, reason: str, **extra: Any) -> None:
        super().__init__(reason)
        self.status = status
        self.body = {"@context": CONTEXT, "@type": kind, "reason": reason, **extra}

    def answer(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body, status_code=self.status)


def not_found(what: str, id_: str, project: str) -> Refused:
    """404 for a resource, file or storage: Delta calls all of them resources."""
    return Refused(404, "ResourceNotFound", f"{what} '{id_}' not found in project '{project}'.")


def incorrect_rev(provided: int, expected: int) -> Refused:
    """409 for an update of another revision than the current one."""
    reason = (
        f"Incorrect revision '{provided}' provided, expected '{expected}', "
        "the resource may have been updated since last seen."
    )
    return Refused(409, "IncorrectRev", reason, provided=provided, expected=expected)
