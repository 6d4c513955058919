"""The agent's sockets: data and errors arrive as they left, and nothing malformed brings the server down."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbpwf.cluster.rpc import Connection, Server
from bbpwf.errors import BbpwfError, CommandFailed, ConnectFailed, ConnectionLost, InvalidInput, NexusError
from bbpwf.redact import MASK, Redactor

SECRET = "very-secret-value"


def fail() -> None:
    raise CommandFailed(
        f"it failed with {SECRET}", exit_code=7, stderr=f"{SECRET} on stderr", where="n1", hint="Retry."
    )


def defect() -> None:
    raise ZeroDivisionError


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    opened = Connection(path)
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    redactor = Redactor()
    redactor.add(SECRET)
    gate = threading.Event()
    methods: dict[str, Any] = {
        "echo": lambda **kw: kw,
        "fail": fail,
        "defect": defect,
        "wait": lambda: gate.wait(30),
    }
    server = Server(tmp_path / "s.sock", methods, redactor)
    server.start()
    yield tmp_path / "s.sock"
    gate.set()
    server.stop()


def test_bytes_and_structures_survive(connection: Connection) -> None:
    value: dict[str, Any] = {"data": bytes(range(256)), "list": [1, None, "é\n"], "nested": {"x": b""}}
    assert connection.call("echo", **value) == value


def test_errors_arrive_as_what_they_were_without_secrets(connection: Connection) -> None:
    with pytest.raises(CommandFailed) as caught:
        connection.call("fail")
    error = caught.value
    assert (error.exit_code, error.where, error.hint, error.retryable) == (7, "n1", "Retry.", False)
    assert error.message == f"it failed with {MASK}"
    assert error.stderr == f"{MASK} on stderr"


def test_a_defect_answers_and_the_next_call_works(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BbpwfError, match="its log has the details"):
        connection.call("defect")
    assert "ZeroDivisionError" in caplog.text
    assert connection.call("echo", a=1) == {"a": 1}


@pytest.mark.parametrize("line", [b"garbage", b"[]", b'{"method": "echo"}', b'{"method": 3, "params": {}}', b"\xff"])
def test_malformed_requests_are_refused(path: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(line + b"\n")
        answer = json.loads(sock.makefile("rb").readline())
    assert answer["error"]["type"] == "InvalidInput"


def test_unknown_methods_are_refused(connection: Connection) -> None:
    with pytest.raises(InvalidInput, match="no method 'shutdown'"):
        connection.call("shutdown")


def test_a_forked_process_speaks_for_itself(connection: Connection) -> None:
    connection.call("echo", who="parent")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(connection.call("echo", who="child")).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"{'who': 'child'}"
    assert connection.call("echo", who="parent") == {"who": "parent"}
    os.close(reader)
    os.close(writer)


def test_nobody_there_and_no_answer_are_told_apart(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(ConnectFailed):
        Connection(tmp_path / "none.sock").call("echo")
    with pytest.raises(ConnectionLost):
        connection.call("wait", patience=0.2)


def test_only_the_owner_may_open_the_socket(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_long_path_works_too(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    server = Server(folder / "s.sock", {"echo": lambda **kw: kw}, Redactor())
    server.start()
    connection = Connection(folder / "s.sock")
    assert connection.call("echo", a=1) == {"a": 1}
    connection.close()
    server.stop()


def test_every_domain_error_can_travel() -> None:
    from bbpwf import errors
    from bbpwf.cluster.rpc import _error_body, _raise

    error = NexusError("no", status=409, kind="IncorrectRev", retryable=True)
    with pytest.raises(NexusError) as caught:
        _raise(_error_body(error, Redactor()))
    assert (caught.value.status, caught.value.kind, caught.value.retryable) == (409, "IncorrectRev", True)
    with pytest.raises(errors.BbpwfError):
        _raise({"type": "os", "message": "not an error type"})
