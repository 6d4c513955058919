"""The one place where an argument list becomes shell text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from bbpwf.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def quote(argv: Iterable[str]) -> str:
    """One line of POSIX shell that runs ``argv`` exactly as given.

    Raises:
        InvalidInput: an argument holds a NUL byte, which no process can receive.
    """
    words = list(argv)
    for word in words:
        if "\0" in word:
            raise InvalidInput(f"a command argument contains a NUL byte: {word[:40]!r}")
    return " ".join(shlex.quote(word) for word in words)


def exports(env: Mapping[str, str]) -> str:
    """``export NAME='value'`` lines for ``env``, sorted by name.

    Raises:
        InvalidInput: a name that no shell accepts, or a NUL byte in a value.
    """
    lines = []
    for name in sorted(env):
        if not _NAME.match(name):
            raise InvalidInput(f"{name!r} is not a valid environment variable name")
        lines.append(f"export {name}={quote([env[name]])}\n")
    return "".join(lines)
