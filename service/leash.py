"""Run a command that ends when its parent does: ``python -m service.leash SIGNAL PARENT_ID -- command…``.

For programs that know nothing of us. The kernel is asked to send SIGNAL to this process when the one that started
it is gone (``prctl(PR_SET_PDEATHSIG)``, Linux), then the command takes its place; the request survives that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from bbpwf import confine

_PR_SET_PDEATHSIG = 1


def problem(argv: list[str]) -> str:
    """Put the leash on this process; what stands in the way, or nothing."""
    if len(argv) < 4 or argv[2] != "--" or argv[0] not in signal.Signals.__members__ or not argv[1].isdigit():
        return "usage: python -m service.leash SIGTERM PARENT_ID -- command [argument…]"
    confine.be_ordinary()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.Signals[argv[0]]), 0, 0, 0) != 0:
        return f"prctl failed: {os.strerror(ctypes.get_errno())}"
    if os.getppid() != int(argv[1]):  # it was gone before the kernel knew what to do about it
        return "the parent is gone"
    return ""


if __name__ == "__main__":
    if in_the_way := problem(sys.argv[1:]):
        sys.exit(in_the_way)
    os.execvp(sys.argv[4], sys.argv[4:])  # noqa: S606 becoming the command is what this module is for
