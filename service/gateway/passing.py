"""What is passed on of a request to an instance, and of its answer back."""

from __future__ import annotations

from collections.abc import Iterable

from service.gateway.authorizer import Project
from service.gateway.passes import HEADER

Headers = list[tuple[str, str]]
"""Names are lower case; a name may come more than once."""

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OURS = frozenset({HEADER, "virtual-lab-id", "project-id", "forwarded", "content-length", "expect"})
"""Written anew: nobody outside may say these."""


def to_instance(sent: Iterable[tuple[str, str]], project: Project, gate_pass: str) -> Headers:
    """The headers of a request as its instance gets them. The caller adds the body's length."""
    sent = [(name.lower(), value) for name, value in sent]
    named = _named(sent)
    kept = [
        (name, value)
        for name, value in sent
        if name not in _HOP_BY_HOP | _OURS | named and not name.startswith("x-forwarded-")
    ]
    return [
        *kept,
        (HEADER, gate_pass),
        ("virtual-lab-id", project.virtual_lab_id),
        ("project-id", project.project_id),
    ]


def to_caller(answered: Iterable[tuple[str, str]]) -> Headers:
    """The headers of an answer as the caller gets them."""
    answered = [(name.lower(), value) for name, value in answered]
    dropped = _HOP_BY_HOP | _named(answered)
    return [(name, value) for name, value in answered if name not in dropped]


def _named(headers: Headers) -> frozenset[str]:
    """Headers that ``Connection`` declares to be of this hop alone."""
    values = [value for name, value in headers if name == "connection"]
    return frozenset(each.strip().lower() for value in values for each in value.split(","))
