"""``bbpwf agent`` on a clock that jumps: the seconds in the file named by ``CHAOS_CLOCK`` are added to the time."""

from __future__ import annotations

import os
from pathlib import Path

from bbpwf import settings
from bbpwf.cli.agent import serve
from bbpwf.clock import SystemClock


class JumpingClock(SystemClock):
    """The system's clock, as somebody keeps setting it; monotonic time and sleeping are as ever."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> float:
        """Unix seconds, shifted."""
        try:
            shift = float(self._file.read_text() or "0")
        except (OSError, ValueError):  # not there, or just being written
            shift = 0.0
        return super().now() + shift


if __name__ == "__main__":
    clock = JumpingClock(Path(os.environ["CHAOS_CLOCK"]))
    serve(settings.load(), until_stdin_closes=False, clock=clock)
