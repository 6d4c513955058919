"""One JSON object a line over a Unix socket: the wire between the agent and those who may ask it things.

Who can open a socket is what the socket allows: a run's socket answers for that run alone, the control socket
for the whole instance. Requests are ``{"method", "params"}``, answers ``{"result"}`` or ``{"error"}``; bytes
travel as ``{"$bytes": base64}``. Errors of :mod:`bbpwf.errors` arrive as what they were.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bbpwf import errors
from bbpwf.errors import BbpwfError, ConnectFailed, ConnectionLost, InvalidInput
from bbpwf.redact import Redactor

_log = logging.getLogger(__name__)

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one request or answer; more is refused."""

MAX_CONNECTIONS = 512
"""Conversations at once on one socket; more are refused. Each thread of each process that asks has one."""

_PEER = struct.Struct("3i")
"""``struct ucred`` of Linux: process, uid and group of whoever connected."""

Method = Callable[..., Any]


def jsonable(value: Any) -> Any:
    """``value`` in terms of JSON: models and dataclasses become objects, bytes ``{"$bytes": …}``."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def restored(value: Any) -> Any:
    """The inverse of :func:`jsonable` as far as bytes go; objects stay dicts."""
    if isinstance(value, dict):
        if value.keys() == {"$bytes"}:
            return base64.b64decode(value["$bytes"])
        return {k: restored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [restored(v) for v in value]
    return value


def _error_body(error: BbpwfError, redactor: Redactor) -> dict[str, Any]:
    extra = {
        k: v
        for k, v in vars(error).items()
        if k not in {"message", "where", "hint", "retryable"} and isinstance(v, (str, int, float, bool))
    }
    return {
        "type": type(error).__name__,
        "message": redactor.mask(error.message),
        "where": error.where,
        "hint": error.hint,
        "retryable": error.retryable,
        "extra": {k: redactor.mask(v) if isinstance(v, str) else v for k, v in extra.items()},
    }


def _raise(body: Mapping[str, Any]) -> None:
    kind = getattr(errors, str(body.get("type")), BbpwfError)
    if not (isinstance(kind, type) and issubclass(kind, BbpwfError)):
        kind = BbpwfError
    error = kind.__new__(kind)
    BbpwfError.__init__(
        error,
        str(body.get("message")),
        where=str(body.get("where", "")),
        hint=str(body.get("hint", "")),
        retryable=bool(body.get("retryable")),
    )
    for name, value in dict(body.get("extra", {})).items():
        setattr(error, name, value)
    raise error


class _Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.connected(self.connection)
        try:
            while line := self.rfile.readline(MAX_MESSAGE):
                self.wfile.write(self.server.answer(line) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.server.disconnected(self.connection)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves ``methods`` on a Unix socket to processes of this user, or of ``uid`` if given, and to nobody else."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    """Callers that may arrive at one instant; the next one would be refused (EAGAIN), and five is soon too few."""

    def __init__(
        self, path: Path, methods: Mapping[str, Method], redactor: Redactor, *, uid: int | None = None
    ) -> None:
        self._methods = dict(methods)
        self._redactor = redactor
        self._path = path
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._callers = {os.geteuid(), os.geteuid() if uid is None else uid}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with _short(path) as short:
            super().__init__(short, _Handler)
        # another's folder decides who gets here at all, and the kernel says who it is that came
        path.chmod(0o600 if uid is None else 0o666)
        self._thread = threading.Thread(target=self.serve_forever, name=f"rpc {path.name}", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and end every open conversation."""
        self.shutdown()
        self.server_close()
        self._path.unlink(missing_ok=True)
        with self._guard:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the process at the other end may ask anything at all, and there are not too many already."""
        del client_address
        told = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(told)
        with self._guard:
            many = len(self._connections)
        if uid not in self._callers or many >= MAX_CONNECTIONS:
            _log.warning("%s: refused a process of uid %d, beside %d conversations", self._path.name, uid, many)
            return False
        return True

    def connected(self, connection: socket.socket) -> None:
        """A conversation began."""
        with self._guard:
            self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        """A conversation ended."""
        with self._guard:
            self._connections.discard(connection)

    def answer(self, line: bytes) -> bytes:
        """The answer to one request, as a line without its end. Never raises."""
        try:
            request = json.loads(line)
            method = self._methods.get(request["method"])
            if method is None:
                raise InvalidInput(f"there is no method {str(request['method'])[:80]!r} on this socket")
            body = {"result": jsonable(method(**restored(request["params"])))}
        except BbpwfError as error:
            body = {"error": _error_body(error, self._redactor)}
        except (ValidationError, ValueError, TypeError, KeyError) as error:
            _log.info("refused a malformed request: %s", error)
            body = {"error": _error_body(InvalidInput(f"malformed request: {error}"), self._redactor)}
        except Exception:  # the boundary: a defect must answer, not hang the caller  # noqa: BLE001 logged in full
            _log.exception("a request failed")
            failed = BbpwfError("the agent failed on this request; its log has the details")
            body = {"error": _error_body(failed, self._redactor)}
        return json.dumps(body).encode()


@contextlib.contextmanager
def _short(path: Path) -> Any:
    """``path`` short enough for a socket address (108 bytes), by way of an open folder if need be."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Connection:
    """A caller's end. Each thread of each process speaks over a socket of its own, so forks are harmless."""

    def __init__(self, path: Path, *, timeout: float = 120.0) -> None:
        self._path = path
        self._timeout = timeout
        self._local = threading.local()
        self._guard = threading.Lock()
        self._all: set[_Socket] = set()

    def call(self, method: str, /, *, patience: float | None = None, **params: Any) -> Any:
        """Ask, and wait for the answer: at most ``patience`` seconds (the connection's time-out if ``None``).

        Raises:
            ConnectFailed: nobody listens on the socket.
            ConnectionLost: the agent went away before it answered.
            BbpwfError: whatever the method raised.
        """
        request = json.dumps({"method": method, "params": jsonable(params)}).encode() + b"\n"
        if len(request) > MAX_MESSAGE:
            raise InvalidInput(f"a request of {len(request)} bytes is over the limit of {MAX_MESSAGE}")
        sock = self._open()
        try:
            sock.settimeout(patience if patience is not None else self._timeout)
            sock.sendall(request)
            line = sock.reader.readline(MAX_MESSAGE * 2)
        except OSError as error:
            self._drop(sock)
            raise ConnectionLost(f"the agent did not answer: {error}", where=str(self._path)) from error
        if not line.endswith(b"\n"):
            self._drop(sock)
            raise ConnectionLost("the agent went away before it answered", where=str(self._path))
        answer = json.loads(line)
        if "error" in answer:
            _raise(answer["error"])
        return restored(answer["result"])

    def _open(self) -> _Socket:
        held: _Socket | None = getattr(self._local, "held", None)
        if held is not None and held.pid == os.getpid():
            return held
        if held is not None:
            held.close()  # our copy of the parent's; the parent keeps its own
        sock = _Socket()
        try:
            with _short(self._path) as short:
                sock.connect(short)
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"the agent is not there: {error.strerror or error}", where=str(self._path)) from error
        self._local.held = sock
        with self._guard:
            self._all.add(sock)
        return sock

    def _drop(self, sock: _Socket) -> None:
        self._local.held = None
        with self._guard:
            self._all.discard(sock)
        sock.close()

    def close(self) -> None:
        """Close every thread's socket; a later call opens a new one."""
        with self._guard:
            for sock in self._all:
                sock.close()
            self._all.clear()
        self._local = threading.local()


class _Socket(socket.socket):
    """A socket that knows which process opened it."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = os.getpid()
        self.settimeout(10.0)
        self.reader = self.makefile("rb")

    def close(self) -> None:
        self.reader.close()
        super().close()
