"""Servers that misbehave below HTTP's good manners: too much, too slowly, half, or somewhere else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from bbpwf.clock import SystemClock
from bbpwf.errors import ProvisionerError
from bbpwf.platform.http import Limits, Reply, exchange

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that hands each connection to a function; answers its URL."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def begin(behave: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(65536)
                        behave(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield begin
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


def ask(url: str, **limits: float) -> Reply:
    with requests.Session() as session:
        return exchange(
            session,
            "GET",
            url,
            what="the service",
            limits=Limits(limits.get("seconds", 5), int(limits.get("size", 10_000))),
            clock=SystemClock(),
            error=ProvisionerError,
        )


def test_an_answer_that_is_too_long_is_cut_off(serve: Serve) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            connection.sendall(b"x" * 10_000)

    with pytest.raises(ProvisionerError, match="more than 10000 bytes") as caught:
        ask(serve(flood))
    assert not caught.value.retryable


def test_an_answer_that_only_drips_is_not_waited_for(serve: Serve) -> None:
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not stop.wait(0.1):
            connection.sendall(b"x")

    begun = time.monotonic()
    try:
        with pytest.raises(ProvisionerError, match=r"within 0\.5 s") as caught:
            ask(serve(drip), seconds=0.5)
    finally:
        stop.set()
    assert caught.value.retryable
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_half_an_answer_is_none(serve: Serve, answer: bytes) -> None:
    with pytest.raises(ProvisionerError, match="could not be reached") as caught:
        ask(serve(lambda connection: connection.sendall(answer)))
    assert caught.value.retryable


def test_a_redirect_is_an_answer_and_not_followed(serve: Serve) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    assert ask(serve(lambda connection: connection.sendall(answer))).status == 302
