"""What every transport can do; see :mod:`bbpwf.transport.ssh` and :mod:`bbpwf.transport.local`.

A transport is shared by threads. Calls raise :class:`bbpwf.errors.TransportError` subclasses when the machine
cannot be reached; a lost connection is re-established by the next call, never by repeating the one that broke.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

DEFAULT_CAP = 4 * 1024 * 1024
"""Bytes of stdout and of stderr kept from one command unless the caller says otherwise."""


@dataclass(frozen=True)
class Completed:
    """A command that ended.

    ``exit_code`` is as a shell reports it (128 + n for signal n). ``stdout`` and ``stderr`` hold at most the
    cap that was asked for; ``truncated`` says that there was more.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def out(self) -> str:
        """stdout as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        """stderr as text; bytes that are not UTF-8 are replaced."""
        return self.stderr.decode(errors="replace")


@dataclass(frozen=True)
class FileStat:
    """What ``stat`` says: ``size`` in bytes, ``mtime`` in Unix seconds, and whether it is a directory."""

    size: int
    mtime: float
    is_dir: bool


@dataclass(frozen=True)
class Traffic:
    """What went over a connection: logins, and commands that were answered or not, since the transport was made."""

    connected: bool
    logins: int
    round_trips: int


class Transport(Protocol):
    """One machine, reached somehow."""

    @property
    def where(self) -> str:
        """``user@host:port``, or ``local``: for error messages."""
        ...

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None, cap: int = DEFAULT_CAP
    ) -> Completed:
        """Run ``argv`` with a login shell's PATH and wait for its end; a non-zero exit is not an error.

        Args:
            argv: the command; quoted by the transport, never interpreted by a shell.
            stdin: everything that the command may read.
            timeout: seconds; the transport's default if ``None``. The command is killed at the limit.
            cap: bytes kept of stdout and of stderr, each.

        Raises:
            CommandTimeout: the limit was reached; the command may have taken effect.
            ConnectionLost: the connection broke on the way; the command may have taken effect.
            ConnectFailed, LoginRefused, HostKeyChanged: nothing was run.
        """
        ...

    def stat(self, paths: Sequence[str]) -> list[FileStat | None]:
        """One entry for each of ``paths`` (absolute), ``None`` where nothing is there; one round trip for all."""
        ...

    def exists(self, paths: Sequence[str]) -> list[bool]:
        """Whether something is at each of ``paths`` (absolute): what :meth:`stat` says, sooner."""
        ...

    def read(self, path: str, *, offset: int = 0, limit: int = DEFAULT_CAP) -> bytes:
        """At most ``limit`` bytes of a file from ``offset``; empty at or past its end.

        Raises:
            NotFound: there is no such file.
        """
        ...

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Put ``data`` at ``path`` atomically (readers see the old or the new), making its folders."""
        ...

    def follow(self, path: str, *, offset: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Chunks of a growing file from ``offset`` on, as they are appended, until the context is left.

        The file may not exist yet. Leaving the context (from any thread) ends the iterator. An iterator that
        ends by itself means the connection is gone: the caller asks again with its own offset.
        """
        ...

    def close(self) -> None:
        """Let go of everything. A closed transport is not used again."""
        ...
