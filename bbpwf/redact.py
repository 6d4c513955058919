"""Secrets are masked by value wherever text leaves the process.

Whoever obtains a secret (a key, a token, a password) registers its value with a :class:`Redactor`; every log
handler, error body and report passes its text through :meth:`Redactor.mask`. Patterns for things that are
always secret (private keys, bearer tokens, presigned URLs) are masked even if nobody registered them.
"""

from __future__ import annotations

import re
import threading

MASK = "[redacted]"
_SHORTEST = 6  # shorter values would mask ordinary words

_PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*"),
    re.compile(r"""(?<=://)[^/\s:@"']*:[^/\s@"']+(?=@)"""),  # who one is in a URL
    re.compile(r"(?<=X-Amz-Signature=)[0-9a-f]{16,}"),
    re.compile(r"(?<=X-Amz-Security-Token=)[^&\s\"']{16,}"),
)


class Redactor:
    """A set of secret values, and the masking of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, *secrets: str) -> None:
        """Mask these values from now on; each line of a multi-line secret is masked on its own too."""
        with self._lock:
            for secret in secrets:
                for value in {secret, *secret.splitlines()}:
                    if len(value.strip()) >= _SHORTEST:
                        self._values.add(value.strip())
            longest_first = sorted(self._values, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def mask(self, text: str) -> str:
        """``text`` with every known secret and secret-looking pattern replaced."""
        pattern = self._pattern
        if pattern is not None:
            text = pattern.sub(MASK, text)
        for known in _PATTERNS:
            text = known.sub(MASK, text)
        return text
