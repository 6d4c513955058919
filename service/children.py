"""Processes that the service starts, that end with it, and that are never doubled.

Each child has a pipe for its standard input that we keep open: its end of file tells the child that we are gone. It
also inherits a locked file: as long as anything of a child lives, so does the lock, whoever started it. A successor
therefore knows when a child of its dead predecessor is really gone, without trusting a process id on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from bbpwf.errors import Conflict
from bbpwf.redact import Redactor
from service.containment import Cell

_log = logging.getLogger(__name__)

LOG_CAP = 5 * 1024 * 1024
"""Bytes of a log file before it is turned over; one older part is kept beside it."""
_LONGEST_LINE = 64 * 1024


class Lock:
    """An advisory lock on a file that lives as long as any process holds the descriptor."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.descriptor)
            raise Conflict("another process holds the lock", where=str(path)) from None

    def note(self, pid: int) -> None:
        """Write down for whom it is held: the descriptors of another user's process cannot be looked at."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{pid} {_born(pid)}".encode(), 0)

    def close(self) -> None:
        """Give up our hold; children that inherited it keep theirs."""
        os.close(self.descriptor)


def holders(path: Path) -> list[int]:
    """Ids of the processes that have a locked file open, however they call it, or for whom it was locked."""
    try:
        target, noted = path.stat(), path.read_text().split()
    except OSError:
        return []
    found: list[int] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        if noted == [process.name, _born(int(process.name))] or _has_open(process, target):
            found.append(int(process.name))
    return found


def _has_open(process: Path, target: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(link.stat(), target):
                    return True
    return False


def _born(pid: int) -> str:
    """When a process was started, in ticks since the machine was: no other process of its id has the same."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return "gone"


class Child:
    """A started process, the leader of a session of its own.

    Args:
        name: for the log.
        argv: the command.
        env: its whole environment.
        cwd: its working folder.
        log: where its standard output and error go, masked and capped.
        lock: file that stays locked while the child or anything it forked lives.
        redactor: masks what it says.
        cell: what it is kept in, if it runs code of users.

    Raises:
        Conflict: the lock is held: an earlier child is still there.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        lock: Path,
        redactor: Redactor,
        cell: Cell | None = None,
    ) -> None:
        self.name = name
        self._log = log
        self._lock = lock
        self._redactor = redactor
        held = Lock(lock)
        try:
            self._process = subprocess.Popen(
                list(argv) if cell is None else cell.command(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(held.descriptor,),
                **({} if cell is None else cell.identity),
            )
            held.note(self.pid)
        finally:
            held.close()
        self._pump = threading.Thread(
            target=self._copy, args=(self._process.stdout,), name=f"log of {name}", daemon=True
        )
        self._pump.start()
        _log.info("started %s, process %d", name, self.pid)

    @property
    def pid(self) -> int:
        """Process id, also the id of its session and group."""
        return self._process.pid

    def become(self, name: str, *, log: Path, lock: Path, word: bytes) -> None:
        """Give a child that waits for it its task: another name, log and lock, and ``word`` on its standard input.

        Raises:
            Conflict: the lock is held: an earlier child is still there. This one is as it was.
            OSError: it has ended.
        """
        if self._process.stdin is None or self.exit_code() is not None:
            raise ProcessLookupError(f"{self.name} has ended")
        free = Lock(lock)
        try:
            self._lock.replace(lock)  # with what it says of us, and with the hold that the child has on it
        finally:
            free.close()
        _log.info("%s is %s now, process %d", self.name, name, self.pid)
        self.name, self._log, self._lock = name, log, lock
        os.write(self._process.stdin.fileno(), word)

    def exit_code(self) -> int | None:
        """``None`` while it runs; negative for a signal, as in :mod:`subprocess`."""
        code = self._process.poll()
        if code is not None:
            self._pump.join(2.0)  # what it said last is in the log when its end is known
            self.hang_up()
        return code

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """Close its standard input: "your service is gone"."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def kill(self) -> None:
        """SIGKILL to its whole group, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._pump.join(2.0)
        self.hang_up()

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for its end; whether it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.exit_code() is not None

    def _copy(self, source: IO[bytes]) -> None:
        """Copy lines to the log until the last writer is gone."""
        with source, contextlib.suppress(ValueError, OSError):
            while line := source.readline(_LONGEST_LINE):
                log = self._log
                log.parent.mkdir(parents=True, exist_ok=True)
                if log.exists() and log.stat().st_size > LOG_CAP:
                    log.replace(log.with_name(log.name + ".1"))
                with log.open("a", encoding="utf-8") as file:
                    file.write(self._redactor.mask(line.decode(errors="replace")))
