"""One authenticated SSH connection: how it is made and checked, and channels on it. Errors leave as ours.

With :mod:`bbpwf.transport.hostkeys` the only importer of paramiko.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import threading
from dataclasses import dataclass

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.errors import ConnectFailed, LoginRefused, SecretUnavailable
from bbpwf.transport.hostkeys import HostKeyPins

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Login:
    """Where to connect to, as whom, and within what limits.

    ``connect_timeout`` limits TCP, the SSH handshake and the login, each; ``keepalive`` is the interval, in
    seconds, of messages on an idle connection, and three of it without an answer end the connection.
    """

    host: str
    port: int
    user: str
    connect_timeout: float = 20.0
    keepalive: int = 30
    trust_new: bool = True

    @property
    def where(self) -> str:
        """``user@host:port``."""
        return f"{self.user}@{self.host}:{self.port}"


def private_key(pem: SecretStr) -> paramiko.PKey:
    """The key in a PEM or OpenSSH text: RSA, ECDSA or Ed25519, without passphrase.

    Raises:
        SecretUnavailable: it is none of these. The text is not repeated.
    """
    data = pem.get_secret_value().strip().encode() + b"\n"
    loaded: PrivateKeyTypes
    try:
        if b"BEGIN OPENSSH" in data:
            loaded = load_ssh_private_key(data, password=None)
        else:
            loaded = load_pem_private_key(data, password=None)
        text = loaded.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # the causes may quote parts of the key
        raise SecretUnavailable("the SSH key is not an unencrypted private key in PEM form") from None
    for kind in (paramiko.RSAKey, paramiko.ECDSAKey, paramiko.Ed25519Key):
        try:
            return kind.from_private_key(io.StringIO(text))
        except (paramiko.SSHException, ValueError):
            continue
    raise SecretUnavailable("the SSH key is of a kind that is not supported; RSA, ECDSA and Ed25519 are")


class Connection:
    """An SSH connection that is open and logged in.

    Raises (from the constructor):
        ConnectFailed: nobody answered in time, or not as an SSH server.
        HostKeyChanged: the server's key is not the pinned one.
        LoginRefused: the server refuses the user or the key.
    """

    def __init__(self, login: Login, key: paramiko.PKey, pins: HostKeyPins, clock: Clock) -> None:
        self._login = login
        self._clock = clock
        pinned = pins.types(login.host, login.port)
        sock = self._connect()
        try:
            self._transport = self._handshake(sock, pinned)
        except BaseException:
            sock.close()
            raise
        try:
            server_key = self._transport.get_remote_server_key()
            if pins.check(login.host, login.port, server_key, trust_new=login.trust_new):
                _log.info("pinned the host key of %s: %s", login.where, server_key.fingerprint)
            self._authenticate(key)
            self._transport.set_keepalive(login.keepalive)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone."""
        return bool(self._transport.is_active())

    def open(self, command: str) -> Channel:
        """A channel of its own that runs ``command``.

        Raises:
            ConnectFailed: the server opens no further channel, or does not answer in time; nothing was run. A
                server that does not answer is taken for gone, and the connection is closed.
        """
        limit = self._login.connect_timeout
        deadline = self._clock.monotonic() + limit
        # paramiko waits for the answer to an exec request without a limit
        late = threading.Timer(limit, self.close)
        late.daemon = True
        late.start()
        try:
            channel = self._transport.open_session(timeout=limit)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self._clock.monotonic() >= deadline:
                self.close()
            raise ConnectFailed(f"no session: {_said(error)}", where=self._login.where) from error
        finally:
            late.cancel()
        return Channel(channel)

    def close(self) -> None:
        """End the connection and all channels on it."""
        self._transport.close()

    def _connect(self) -> socket.socket:
        login = self._login
        try:
            sock = socket.create_connection((login.host, login.port), timeout=login.connect_timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # keepalives that nobody acknowledges end the connection after this time, not after the kernel's 15 min
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000 * login.keepalive)
        except OSError as error:
            raise ConnectFailed(
                f"cannot connect: {_said(error)}",
                where=login.where,
                hint="Is the cluster up, and its SSH port open to this machine?",
            ) from error
        return sock

    def _handshake(self, sock: socket.socket, pinned: list[str]) -> paramiko.Transport:
        login = self._login
        try:
            transport = paramiko.Transport(sock)
            transport.daemon = True
            transport.banner_timeout = transport.handshake_timeout = login.connect_timeout
            if pinned:  # the server shows one of its keys: ask for the kind that can be compared
                options = transport.get_security_options()
                options.key_types = [k for k in options.key_types if _family(k) in pinned] or options.key_types
            transport.start_client(timeout=login.connect_timeout)
        except (paramiko.SSHException, OSError, EOFError, ValueError) as error:
            raise ConnectFailed(
                f"no SSH handshake: {_said(error)}", where=login.where, hint="Is this the head node's SSH port?"
            ) from error
        if not transport.initial_kex_done:
            transport.close()
            raise ConnectFailed(f"no SSH handshake within {login.connect_timeout:g} s", where=login.where)
        return transport

    def _authenticate(self, key: paramiko.PKey) -> None:
        login, transport = self._login, self._transport
        done = threading.Event()
        deadline = self._clock.monotonic() + login.connect_timeout
        try:
            transport.auth_publickey(login.user, key, done)
            while not done.wait(0.1) and transport.is_active():
                if self._clock.monotonic() >= deadline:
                    raise ConnectFailed(f"no answer to the login within {login.connect_timeout:g} s", where=login.where)
            if transport.is_authenticated():
                return
            if (problem := transport.get_exception()) is not None:
                raise problem
            if transport.is_active():  # refused, and the exception was lost on the way (paramiko 5)
                raise paramiko.AuthenticationException("Authentication failed.")
            raise EOFError("the server hung up")
        except paramiko.AuthenticationException as error:
            raise LoginRefused(
                f"the login was refused: {_said(error)}",
                where=login.where,
                hint="Is this the cluster's current key, and does the user exist there yet?",
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectFailed(f"the login broke: {_said(error)}", where=login.where) from error


class Channel:
    """One command's streams, in the shape that :class:`bbpwf.transport.framed.Stream` asks for."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    @property
    def ended(self) -> bool:
        """Whether the far end is known to be gone."""
        return bool(self._channel.closed or self._channel.eof_received)

    def send(self, data: bytes, timeout: float) -> None:
        """Send everything; ``timeout`` limits each stall."""
        self._channel.settimeout(timeout)
        try:
            self._channel.sendall(data)
        except paramiko.SSHException as error:
            raise OSError(_said(error)) from error
        except EOFError as error:
            raise OSError("the connection ended") from error

    def receive(self, timeout: float | None) -> bytes:
        """What arrives next, empty at the end; ``None`` waits as long as the connection lives."""
        self._channel.settimeout(timeout)
        try:
            return self._channel.recv(128 * 1024)
        except (paramiko.SSHException, EOFError) as error:
            raise OSError(_said(error)) from error

    def close(self) -> None:
        """Hang up; whoever waits in :meth:`receive` gets the end."""
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):  # the connection may be gone already
            self._channel.close()


def _family(algorithm: str) -> str:
    """The key type that a host key algorithm proves: RSA has three algorithms for one type."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def _said(error: BaseException) -> str:
    """What an exception says, never empty."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
