"""A job's log as it grows, until the job ends: bounded in time, in bytes and in readers.

No reader has a connection of its own: all ask the one agent, which has a few shells on the head node for everybody.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable

import anyio
from starlette.concurrency import run_in_threadpool

from bbpwf.cluster.jobs import JobView
from bbpwf.errors import BbpwfError, LimitExceeded, NotFound
from bbpwf.redact import Redactor

EVERY_S = 1.0
MAX_READERS = 64
MAX_BYTES = 256 * 1024 * 1024
MAX_S = 6 * 3600.0
LONGEST_LINE = 64 * 1024
"""A line is sent whole, so that what must be masked in it is seen whole; a longer one is sent in pieces."""
PATIENCE = 60
"""Failed looks in a row after which the stream ends; the reader comes again with its offset."""


class Followers:
    """Gives out streams, as many at once as :data:`MAX_READERS`."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._readers = 0
        self._guard = threading.Lock()

    def follow(self, look: Callable[[], JobView], read: Callable[[int], bytes], start: int) -> AsyncGenerator[bytes]:
        """The log from ``start`` on.

        Args:
            look: answers the job as it is now.
            read: answers a piece of the present attempt's log from an offset; NotFound while there is none.
            start: first byte of the present attempt's log; a later attempt's is sent from its beginning.

        Raises:
            LimitExceeded: there are too many readers.
        """
        with self._guard:
            if self._readers >= MAX_READERS:
                raise LimitExceeded(f"{MAX_READERS} readers follow logs already", hint="Ask by offset.", retryable=True)
        return self._stream(look, read, start)

    async def _stream(
        self, look: Callable[[], JobView], read: Callable[[int], bytes], offset: int
    ) -> AsyncGenerator[bytes]:
        with self._guard:  # here, because a stream that nobody began to read never comes to its end either
            self._readers += 1
        try:
            deadline = anyio.current_time() + MAX_S
            sent = failures = 0
            rest, log = b"", ""
            while sent < MAX_BYTES and anyio.current_time() < deadline and failures < PATIENCE:
                try:
                    job = await run_in_threadpool(look)  # before the log: what it wrote last comes before its end
                    if log and job.stdout != log:
                        if rest:
                            yield self._masked(rest)
                        offset, rest = 0, b""
                    log = job.stdout
                    piece = await run_in_threadpool(_piece, read, offset) if log else b""
                    failures = 0
                except BbpwfError:
                    failures += 1
                    await anyio.sleep(EVERY_S)
                    continue
                offset += len(piece)
                sent += len(piece)
                whole, rest = _lines(rest + piece)
                if whole:
                    yield self._masked(whole)
                if not piece:
                    if job.state.terminal:
                        break
                    await anyio.sleep(EVERY_S)
            if rest:
                yield self._masked(rest)
        finally:
            with self._guard:
                self._readers -= 1

    def _masked(self, piece: bytes) -> bytes:
        return self._redactor.mask(piece.decode(errors="replace")).encode()


def _piece(read: Callable[[int], bytes], offset: int) -> bytes:
    try:
        return read(offset)
    except NotFound:  # it has written none yet
        return b""


def _lines(data: bytes) -> tuple[bytes, bytes]:
    """Whole lines (progress bars end theirs with a carriage return), and what is left."""
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if end == 0 and len(data) > LONGEST_LINE:
        end = len(data)
    return data[:end], data[end:]
