"""A head node over SSH: one connection, a few framed login shells on it, and channels that follow files."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import SecretStr

from bbpwf import shell
from bbpwf.clock import Clock
from bbpwf.errors import ConnectFailed, ConnectionLost, LimitExceeded, TransportError
from bbpwf.transport import remote_files
from bbpwf.transport.framed import EXISTS, FramedShell, shell_command
from bbpwf.transport.hostkeys import HostKeyPins
from bbpwf.transport.protocol import DEFAULT_CAP, Completed, FileStat, Traffic
from bbpwf.transport.ssh_connection import Channel, Connection, Login, private_key

_log = logging.getLogger(__name__)

SHELLS = 4
FOLLOWERS = 4
"""sshd opens ten sessions on a connection (MaxSessions) and refuses the eleventh."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class SshTransport:
    """See :class:`bbpwf.transport.protocol.Transport`. Owned by the process that made it: useless after a fork.

    Nothing is connected before the first call. After a failed attempt the next one is made no sooner than a
    growing pause (0.5 to 30 s); calls in between fail at once with what the last attempt failed with.

    Args:
        login: where to, and limits.
        key: private key, PEM; kept in memory only.
        pins: known host keys.
        clock: for limits.
        command_timeout: seconds that a command gets unless its caller says otherwise.

    Raises:
        SecretUnavailable: the key is not a private key that can be used.
    """

    def __init__(
        self, login: Login, key: SecretStr, pins: HostKeyPins, *, clock: Clock, command_timeout: float = 60.0
    ) -> None:
        self._login = login
        self._key = private_key(key)
        self._pins = pins
        self._clock = clock
        self._command_timeout = command_timeout
        self._pid = os.getpid()
        self._connecting = threading.Lock()
        self._logins = self._round_trips = 0
        self._connection: Connection | None = None
        self._closed = False
        self._failures = 0
        self._next_attempt = 0.0
        self._last_failure: TransportError | None = None
        self._turns = threading.BoundedSemaphore(SHELLS)
        self._followers = threading.BoundedSemaphore(FOLLOWERS)
        self._idle: list[_Lane] = []
        self._idle_lock = threading.Lock()

    @property
    def where(self) -> str:
        """``user@host:port``."""
        return self._login.where

    @property
    def connected(self) -> bool:
        """Whether there is a connection that is not known to be gone."""
        connection = self._connection
        return connection is not None and connection.alive

    @property
    def traffic(self) -> Traffic:
        """What went over the connection so far."""
        return Traffic(self.connected, self._logins, self._round_trips)

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None, cap: int = DEFAULT_CAP
    ) -> Completed:
        """Run a command in one of the login shells; waits for a free one as long as the command itself may take."""
        limit = self._command_timeout if timeout is None else timeout
        lane = self._take(limit)
        try:
            self._round_trips += 1
            return lane.shell.run(argv, stdin=stdin, timeout=limit, cap=cap)
        finally:
            self._give_back(lane)

    def stat(self, paths: Sequence[str]) -> list[FileStat | None]:
        """One entry a path, all in one round trip."""
        if not paths:
            return []
        argv, stdin = remote_files.stat_command(paths)
        names = sum(len(os.fsencode(path)) for path in paths)
        done = self.run(argv, stdin=stdin, cap=2 * names + 400 * len(paths))
        return remote_files.stat_answer(paths, done, where=self.where)

    def exists(self, paths: Sequence[str]) -> list[bool]:
        """Whether something is at each path. No program is started for it unless that cannot be told without."""
        if not paths:
            return []
        done = self.run([EXISTS, *paths], cap=len(paths) + 4096)
        answers = done.out
        if done.exit_code != 0 or set(answers) - set("+-") or len(answers) != len(paths):
            return [each is not None for each in self.stat(paths)]
        return [each == "+" for each in answers]

    def read(self, path: str, *, offset: int = 0, limit: int = DEFAULT_CAP) -> bytes:
        """At most ``limit`` bytes from ``offset``."""
        done = self.run(remote_files.read_command(path, offset, limit), cap=max(limit, 4096))
        return remote_files.read_answer(path, done, where=self.where)

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Put ``data`` at ``path`` atomically."""
        done = self.run(remote_files.write_command(path, mode), stdin=data)
        remote_files.write_answer(path, done, where=self.where)

    @contextmanager
    def follow(self, path: str, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Chunks of a growing file, on a channel of its own.

        Raises:
            LimitExceeded: four files are being followed already.
        """
        if not self._followers.acquire(blocking=False):
            raise LimitExceeded(f"{FOLLOWERS} files are being followed already", where=self.where)
        try:
            channel = self._connected().open(shell.quote(remote_files.follow_command(path, offset)))
            try:
                yield _chunks(channel)
            finally:
                channel.close()
        finally:
            self._followers.release()

    def close(self) -> None:
        """End the connection. In a forked child it does nothing: the connection is the parent's."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _take(self, patience: float) -> _Lane:
        self._check_usable()
        if not self._turns.acquire(timeout=patience):
            raise ConnectFailed(f"all shells were busy for {patience:g} s; nothing was run", where=self.where)
        try:
            connection = self._connected()
            while lane := self._pop_idle():
                if lane.connection is connection and lane.shell.usable and not lane.channel.ended:
                    return lane
                lane.shell.close()
            return self._new_lane(connection)
        except BaseException:
            self._turns.release()
            raise

    def _give_back(self, lane: _Lane) -> None:
        if lane.shell.usable:
            with self._idle_lock:
                self._idle.append(lane)
        else:
            lane.shell.close()
        self._turns.release()

    def _pop_idle(self) -> _Lane | None:
        with self._idle_lock:
            return self._idle.pop() if self._idle else None

    def _new_lane(self, connection: Connection) -> _Lane:
        nonce = FramedShell.new_nonce()
        channel = connection.open(shell_command(nonce))
        framed = FramedShell(channel, nonce, where=self.where, clock=self._clock)
        try:
            framed.start(self._login.connect_timeout)
        except TransportError as error:
            framed.close()
            raise ConnectFailed(
                f"no login shell: {error.message}",
                where=self.where,
                hint="A profile script may end the shell or wait for input, or the head node's /tmp may be full.",
            ) from error
        return _Lane(connection, channel, framed)

    def _connected(self) -> Connection:
        self._check_usable()
        with self._connecting:
            if self._connection is not None and self._connection.alive:
                return self._connection
            if self._connection is not None:
                _log.warning("the connection to %s is gone; connecting again", self.where)
                self._connection.close()
                self._connection = None
            if self._last_failure is not None and self._clock.monotonic() < self._next_attempt:
                raise _again(self._last_failure)
            try:
                self._connection = Connection(self._login, self._key, self._pins, self._clock)
            except TransportError as error:
                pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
                self._failures = min(self._failures + 1, 16)
                self._next_attempt = self._clock.monotonic() + pause
                self._last_failure = error
                raise
            if self._closed:  # meanwhile
                self._connection.close()
                self._check_usable()
            self._failures, self._last_failure = 0, None
            self._logins += 1
            _log.info("connected to %s", self.where)
            return self._connection

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise TransportError(
                f"the connection belongs to process {self._pid}; this is {os.getpid()}, forked from it",
                where=self.where,
                retryable=False,
            )
        if self._closed:
            raise ConnectionLost("the transport was closed", where=self.where, retryable=False)


class _Lane:
    def __init__(self, connection: Connection, channel: Channel, framed: FramedShell) -> None:
        self.connection = connection
        self.channel = channel
        self.shell = framed


def _again(error: TransportError) -> TransportError:
    """The same failure as a new exception: one that is raised twice collects both tracebacks."""
    return type(error)(error.message, where=error.where, hint=error.hint, retryable=error.retryable)


def _chunks(channel: Channel) -> Iterator[bytes]:
    while True:
        try:
            data = channel.receive(None)
        except OSError:
            return
        if not data:
            return
        yield data
