"""A TCP relay, so that what listens on the loopback address can be reached from a container's network."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def relay(host: str, target: int) -> Iterator[int]:
    """Listen on a free port of ``host``, an address of this machine, and pass everything on to loopback's ``target``."""
    listener = socket.create_server((host, 0))
    open_sockets: set[socket.socket] = {listener}
    lock = threading.Lock()

    def end(*sockets: socket.socket) -> None:
        for each in sockets:
            with lock:
                open_sockets.discard(each)
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve(near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", target), timeout=10)
        except OSError:
            end(near)
            return
        far.settimeout(None)
        with lock:
            open_sockets.update({near, far})
        back = threading.Thread(target=pump, args=(far, near), daemon=True)
        back.start()
        pump(near, far)
        back.join()
        end(near, far)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(near,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with lock:
            left = list(open_sockets)
        end(*left)
        accepting.join(10)
