"""Named points at which this process can be made to die as a power cut would let it: for crash tests alone.

A point costs one look at an empty table unless :func:`arm` was called, which entry points do with the value of
``BBPWF_FAULTS``: ``name=n`` ends the process with SIGKILL when it comes to the point for the n-th time; several
are separated by commas. A word ``@path`` names a file to which the process appends the name of the point that it dies
at. Nothing else is flushed, no handler runs, no lock is let go of by us.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "BBPWF_FAULTS"
"""The environment variable that entry points read."""

_armed: dict[str, int] = {}
_epitaphs: list[str] = []
_guard = threading.Lock()


def arm(text: str) -> None:
    """Arm the points that ``text`` names; an empty text disarms all.

    Raises:
        ValueError: it is not of the form ``name=n,name=n,@path`` with positive numbers.
    """
    _armed.clear()
    _epitaphs.clear()
    for word in filter(None, text.split(",")):
        name, _, count = word.partition("=")
        if word.startswith("@/"):
            _epitaphs.append(word[1:])
        elif not name or not count.isdigit() or int(count) < 1:
            raise ValueError(f"{word!r} is not a fault point and a number")
        else:
            _armed[name] = int(count)


def point(name: str) -> None:
    """Die here if this point was armed and its turn has come."""
    if not _armed:
        return
    with _guard:
        left = _armed.get(name)
        if left is None:
            return
        _armed[name] = left - 1
        if left == 1:
            _die(name)


def _die(name: str) -> None:
    for path in _epitaphs:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(file, f"{name}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
