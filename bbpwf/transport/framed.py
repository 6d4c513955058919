"""Many commands through one remote login shell.

A new SSH session for each command costs 126 ms over loopback (paramiko 5), and sshd allows ten of them at once. A
shell that stays open and is handed commands costs a few, most of it the command's own start. Its far end is
``framed.sh``; requests and answers carry lengths, so that no output can be mistaken for an answer, and each answer
starts with a nonce, so that what profile scripts print is never mistaken for one either.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Protocol

from bbpwf import shell
from bbpwf.clock import Clock
from bbpwf.errors import CommandTimeout, ConnectionLost, InvalidInput, TransportError
from bbpwf.transport.protocol import Completed

GRACE_S = 5.0
"""Seconds beyond a command's own limit after which the far end is taken for dead."""

EXISTS = "bbpwf-exists"
"""The one command that the far end's shell answers itself: for each argument + or -, or ? for what may not be seen."""

_SLOWEST_LINK = 128 * 1024  # bytes a second that a link is expected to carry: large data gets more time
_LONGEST_HEADER = 200
_SHORT = 1024
"""Bytes of a command's stdin that the far end's shell reads itself, byte by byte; more are faster read by a program."""
_LONGEST_GREETING = 1024 * 1024


class Stream(Protocol):
    """A two-way byte stream to a shell: an SSH channel, or the pipes of a process."""

    def send(self, data: bytes, timeout: float) -> None:
        """Send everything. Raises TimeoutError when it stalls, OSError when the stream is gone."""
        ...

    def receive(self, timeout: float) -> bytes:
        """What arrives next, at least one byte; empty at the end. Raises TimeoutError when nothing does."""
        ...

    def close(self) -> None:
        """End the stream; a shell at the far end ends itself."""
        ...


@cache
def _loop() -> str:
    return (files("bbpwf.transport") / "framed.sh").read_text()


def shell_command(nonce: str) -> str:
    """The command line that starts the far end, for whatever shell the login has.

    Profile scripts see neither the requests nor our output: their stdin is empty, and what they print is dropped.
    The far end's own program comes first on stdin, not in an argument: people look at process lists.
    """
    fetch = f'IFS= read -r -t 9999999 -N {len(_loop())} program <&7 && eval "$program"'
    inner = shell.quote(["bash", "-l", "-c", fetch, "bbpwf-shell", nonce])
    outer = f"exec 7<&0 8>&1 </dev/null >/dev/null 2>&1; exec {inner}"
    return f"exec {shell.quote(['bash', '--noprofile', '--norc', '-c', outer])}"


class FramedShell:
    """One open shell. One command at a time; whoever shares it takes turns.

    After any :class:`TransportError` but a time-out that the far end itself reported, the shell is not usable:
    see :attr:`usable`.

    Args:
        stream: connected to a shell that runs :func:`shell_command` with ``nonce``.
        nonce: as given to it.
        where: the machine, for error messages.
        clock: for limits.
    """

    def __init__(self, stream: Stream, nonce: str, *, where: str, clock: Clock) -> None:
        self._stream = stream
        self._nonce = nonce.encode()
        self._where = where
        self._clock = clock
        self._buffer = bytearray()
        self._next = 0
        self._turn = threading.Lock()
        self.usable = False

    @staticmethod
    def new_nonce() -> str:
        """A word that no output holds by chance."""
        return f"bbpwf-{secrets.token_hex(12)}"

    def start(self, timeout: float) -> None:
        """Wait until the shell has read its profile.

        Raises:
            ConnectionLost: it ended instead, because a profile script exits or there is no room for its
                temporary files; nothing was run.
            CommandTimeout: it did not get there in time; nothing was run.
        """
        ready = b"\n" + self._nonce + b" READY\n"
        deadline = self._clock.monotonic() + timeout
        try:
            self._stream.send(_loop().encode("ascii"), timeout)
        except OSError as error:  # a time-out is one too
            self.close()
            raise ConnectionLost("the login shell could not be started", where=self._where) from error
        while (at := self._buffer.find(ready)) < 0:
            if len(self._buffer) > _LONGEST_GREETING:
                del self._buffer[: -len(ready)]
            self._fill(deadline, "the login shell to start")
        del self._buffer[: at + len(ready)]
        self.usable = True

    def run(self, argv: Sequence[str], *, stdin: bytes, timeout: float, cap: int) -> Completed:
        """Run one command to its end; see :meth:`bbpwf.transport.protocol.Transport.run`.

        Raises:
            CommandTimeout: its limit was reached.
            ConnectionLost: the shell or the connection ended meanwhile.
        """
        if not argv:
            raise InvalidInput("a command needs at least a program")
        command = shell.quote(argv).encode(errors="surrogateescape")
        with self._turn:
            self._next += 1
            text = "t" if 0 < len(stdin) <= _SHORT and b"\0" not in stdin else ""
            header = f"{self._next} {max(1, round(timeout * 1000))} {cap} {len(command)} {text}{len(stdin)}\n"
            what = argv[0].rsplit("/", 1)[-1]
            margin = GRACE_S + (len(stdin) + len(command)) / _SLOWEST_LINK
            deadline = self._clock.monotonic() + timeout + margin
            self.usable = False
            try:
                self._stream.send(b"".join((header.encode(), command, stdin, b".")), timeout + margin)
                code, out, err, flags = self._answer(deadline, what)
            except TransportError:
                self._stream.close()
                raise
            except TimeoutError as error:
                self._stream.close()
                raise CommandTimeout(f"{what} could not be sent in time", where=self._where) from error
            except OSError as error:
                self._stream.close()
                raise ConnectionLost(f"the connection broke while {what} ran", where=self._where) from error
            self.usable = True
        if "T" in flags:
            raise CommandTimeout(f"{what} was ended after its limit of {timeout:g} s", where=self._where)
        return Completed(code, out, err, truncated="C" in flags)

    def close(self) -> None:
        """End the shell."""
        self.usable = False
        self._stream.close()

    def _answer(self, deadline: float, what: str) -> tuple[int, bytes, bytes, str]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LONGEST_HEADER:
                raise self._nonsense(what)
            self._fill(deadline, what)
        words = bytes(self._buffer[:end]).split(b" ")
        if len(words) != 6 or words[0] != self._nonce or words[1] != str(self._next).encode():
            raise self._nonsense(what)
        try:
            code, out_length, err_length = (int(word) for word in words[2:5])
        except ValueError:
            raise self._nonsense(what) from None
        start, middle, stop = end + 1, end + 1 + out_length, end + 1 + out_length + err_length
        deadline = max(deadline, self._clock.monotonic() + GRACE_S + stop / _SLOWEST_LINK)
        while len(self._buffer) < stop:
            self._fill(deadline, what)
        out, err = bytes(self._buffer[start:middle]), bytes(self._buffer[middle:stop])
        del self._buffer[:stop]
        return code, out, err, words[5].decode()

    def _nonsense(self, what: str) -> ConnectionLost:
        return ConnectionLost(f"the shell that ran {what} answered out of turn", where=self._where)

    def _fill(self, deadline: float, what: str) -> None:
        left = deadline - self._clock.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            data = self._stream.receive(left)
        except TimeoutError as error:
            self.close()
            raise CommandTimeout(f"no answer in time: waited for {what}", where=self._where) from error
        except OSError as error:
            self.close()
            raise ConnectionLost(f"the connection broke: waited for {what}", where=self._where) from error
        if not data:
            self.close()
            raise ConnectionLost(f"the shell ended: waited for {what}", where=self._where)
        self._buffer += data
