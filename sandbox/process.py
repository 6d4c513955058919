"""One process that the sandbox runs: how it starts, when it is ready, how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """What to run. ``ready`` is asked every 50 ms until it says True or ``ready_within`` seconds are over.

    ``env`` is the whole environment of the process, not an addition to ours.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], bool] = lambda: True
    ready_within: float = 30.0
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass
class Running:
    """A started process, in a session of its own."""

    process: Process
    popen: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """Process id, also the id of its session and group."""
        return self.popen.pid


class StartFailed(Exception):
    """A process ended or did not become ready; the message holds the end of its log."""


def start(process: Process) -> Running:
    """Start ``process`` and wait until it is ready.

    Raises:
        StartFailed: it ended early or was not ready in time; it has been stopped.
    """
    process.log.parent.mkdir(parents=True, exist_ok=True)
    with process.log.open("ab") as log:
        popen = subprocess.Popen(
            process.argv,
            env=dict(process.env),
            cwd=process.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(process, popen)
    deadline = time.monotonic() + process.ready_within
    while not process.ready():
        if popen.poll() is not None or time.monotonic() > deadline:
            how = f"ended with code {popen.returncode}" if popen.returncode is not None else "was not ready in time"
            stop(running)
            tail = process.log.read_text(errors="replace")[-2000:]
            raise StartFailed(f"{process.name} {how}; the end of {process.log}:\n{tail}")
        time.sleep(0.05)
    return running


def stop(running: Running, *, grace: float = 10.0) -> None:
    """End the process: its stop signal first, SIGKILL to its whole group after ``grace`` seconds."""
    if running.popen.poll() is None:
        running.popen.send_signal(running.process.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.popen.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.popen.wait()


def free_ports(count: int) -> list[int]:
    """``count`` loopback TCP ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def accepts(port: int) -> bool:
    """Whether somebody listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
