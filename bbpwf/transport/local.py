"""This machine, by the same protocol as a remote one."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bbpwf.errors import CommandFailed, CommandTimeout, ConnectionLost, InvalidInput, NotFound
from bbpwf.transport.protocol import DEFAULT_CAP, Completed, FileStat

_CHUNK = 128 * 1024
_ABSENT = (FileNotFoundError, NotADirectoryError)


class LocalTransport:
    """Commands as child processes, each in a process group of its own; files directly.

    Args:
        command_timeout: seconds that a command gets unless its caller says otherwise.
        follow_interval: seconds between looks at a file that is followed.
    """

    where = "local"

    def __init__(self, *, command_timeout: float = 60.0, follow_interval: float = 0.1) -> None:
        self._command_timeout = command_timeout
        self._follow_interval = follow_interval
        self._closed = threading.Event()

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None, cap: int = DEFAULT_CAP
    ) -> Completed:
        """Run a command to its end; PATH is this process's own. A program that is not there gives 127."""
        self._check_open()
        if not argv or any("\0" in word for word in argv):
            raise InvalidInput("a command needs a program, and no argument may hold a NUL byte")
        limit = self._command_timeout if timeout is None else timeout
        what = os.path.basename(argv[0])  # noqa: PTH119 - the word may be no path at all
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            return Completed(code, b"", f"{what}: {error.strerror}\n".encode())
        out, err = _Drain(process.stdout, cap), _Drain(process.stderr, cap)
        feeder = threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True)
        feeder.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired as error:
            _end_group(process)
            raise CommandTimeout(f"{what} was ended after its limit of {limit:g} s", where=self.where) from error
        # a process that the command left running may hold the pipes open: what it says later is not the command's
        out.thread.join(1.0)
        err.thread.join(0.2)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return Completed(code, bytes(out.kept), bytes(err.kept), truncated=out.more or err.more)

    def stat(self, paths: Sequence[str]) -> list[FileStat | None]:
        """One entry a path, ``None`` where nothing is there."""
        self._check_open()
        return [self._stat(path) for path in paths]

    def exists(self, paths: Sequence[str]) -> list[bool]:
        """Whether something is at each path."""
        return [each is not None for each in self.stat(paths)]

    def read(self, path: str, *, offset: int = 0, limit: int = DEFAULT_CAP) -> bytes:
        """At most ``limit`` bytes from ``offset``."""
        self._check_open()
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except _ABSENT as error:
            raise NotFound(f"there is no file {path}", where=self.where) from error
        except OSError as error:
            raise _failed("read", path, error) from error

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Put ``data`` at ``path`` atomically, making its folders."""
        self._check_open()
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=target.parent, prefix=".bbpwf.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    os.fchmod(file.fileno(), mode)
                Path(draft).replace(target)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise _failed("write", path, error) from error

    @contextmanager
    def follow(self, path: str, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Chunks of a growing file, as they are appended."""
        self._check_open()
        left = threading.Event()
        try:
            yield self._chunks(Path(path), offset, left)
        finally:
            left.set()

    def close(self) -> None:
        """End all followers."""
        self._closed.set()

    def _chunks(self, path: Path, offset: int, left: threading.Event) -> Iterator[bytes]:
        file: IO[bytes] | None = None
        try:
            while not left.is_set() and not self._closed.is_set():
                if file is None:
                    with contextlib.suppress(*_ABSENT):
                        file = path.open("rb")
                        file.seek(offset)
                data = file.read1(_CHUNK) if file is not None else b""  # type: ignore[attr-defined]  # BufferedReader
                if data:
                    yield data
                else:
                    left.wait(self._follow_interval)
        finally:
            if file is not None:
                file.close()

    def _stat(self, path: str) -> FileStat | None:
        try:
            seen = Path(path).stat()
        except _ABSENT:
            return None
        except OSError as error:
            raise _failed("look at", path, error) from error
        return FileStat(seen.st_size, seen.st_mtime, stat.S_ISDIR(seen.st_mode))

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionLost("the transport was closed", where=self.where, retryable=False)


class _Drain:
    """Reads a pipe to its end in a thread; keeps ``cap`` bytes and remembers that there were more."""

    def __init__(self, pipe: IO[bytes] | None, cap: int) -> None:
        self.kept = bytearray()
        self.more = False
        self._pipe = pipe
        self._cap = cap
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        if self._pipe is None:
            return
        with self._pipe as pipe:
            while data := os.read(pipe.fileno(), _CHUNK):
                room = self._cap - len(self.kept)
                self.kept += data[:room]
                self.more = self.more or len(data) > room


def _feed(pipe: IO[bytes] | None, data: bytes) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError), pipe:
            pipe.write(data)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number, grace in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)


def _failed(verb: str, path: str, error: OSError) -> CommandFailed:
    return CommandFailed(f"could not {verb} {path}: {error.strerror}", exit_code=1, stderr=str(error), where="local")
