"""Task parameters as people are used to from Luigi's own command line: ``--amplitude 0.2 --fast``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bbpwf.errors import InvalidParameter

_OPTION = re.compile(r"--([A-Za-z][A-Za-z0-9_-]*)(?:=(.*))?\Z", re.DOTALL)


def parameters(words: Sequence[str]) -> dict[str, str]:
    """``{"name_with_underscores": "text"}`` from ``--name value``, ``--name=value`` and ``--flag`` (``true``).

    Raises:
        InvalidParameter: a word that belongs to no parameter, or a parameter given twice.
    """
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        match = _OPTION.match(word)
        if match is None:
            raise InvalidParameter(f"{word!r} belongs to no parameter", hint="Write --<parameter> <value>.")
        name = match[1].replace("-", "_")
        if name in found:
            raise InvalidParameter(f"the parameter --{match[1]} is given twice")
        if match[2] is not None:
            found[name] = match[2]
        elif rest and not rest[0].startswith("--"):
            found[name] = rest.pop(0)
        else:
            found[name] = "true"
    return found
