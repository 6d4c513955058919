"""The queue on which Luigi's worker waits for tasks to end.

Luigi's own is a ``multiprocessing.Queue``. Ours is one too as far as forked tasks are concerned; in the worker's
own process it also wakes at once when jobs were seen to change, without a feeder thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

Result = tuple[str, str, Any, list[str], list[Any]]
"""What Luigi's worker takes: task id, status, explanation, missing dependencies, new dependencies."""


class ResultQueue:
    """Results from forked processes (by a pipe) and from this one (by a list).

    Args:
        on_wake: called in the waiting thread before every wait, first with False and, if that brought no result,
            with True: the worker is idle then. May put results.
        next_due: seconds until ``on_wake`` should be called anyway; ``None`` for no such time.
    """

    def __init__(self, on_wake: Callable[[bool], None], next_due: Callable[[], float | None]) -> None:
        self._owner = os.getpid()
        self._on_wake = on_wake
        self._next_due = next_due
        self._local: deque[Result] = deque()
        self._lock = multiprocessing.Lock()
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._rope, False)
        self._guard = threading.RLock()  # a signal handler may come upon its own thread in here
        self._closed = False

    def put(self, result: Result) -> None:
        """Add a result; from the worker's process or from one forked by it."""
        if os.getpid() == self._owner:
            self._local.append(result)
            self.wake()
        else:
            with self._lock:
                self._writer.send(result)

    def wake(self) -> None:
        """End the present or next wait in :meth:`get` early. From any thread and from signal handlers."""
        with self._guard:  # what is closed meanwhile may be another file by the time that it is written to
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # a full pipe wakes just as well
                    os.write(self._rope, b".")

    def ready(self) -> bool:
        """Whether :meth:`get` would answer without waiting."""
        return bool(self._local) or self._reader.poll()

    def get(self, *, timeout: float) -> Result:
        """The next result, within ``timeout`` seconds.

        Raises:
            queue.Empty: there was none.
        """
        deadline = time.monotonic() + timeout
        while True:
            for idle in (False, True):
                self._on_wake(idle)
                if self._local:
                    return self._local.popleft()
                if self._reader.poll():
                    break
            remaining = max(0.0, deadline - time.monotonic())
            due = self._next_due()
            readable = connection.wait(
                [self._reader, self._bell], remaining if due is None else min(remaining, max(due, 0.0))
            )
            if self._bell in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._bell, 65536)
                continue
            if self._reader in readable:
                result: Result = self._reader.recv()
                return result
            if remaining == 0.0:
                raise queue.Empty

    def close(self) -> None:
        """Let go of the pipes."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._reader.close()
            self._writer.close()
            os.close(self._bell)
            os.close(self._rope)
