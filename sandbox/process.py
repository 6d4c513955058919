"""One process that the sandbox runs: how it starts, when it is ready, how it ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PORTS = range(15000, 32000)
"""Below Linux's range for outgoing connections (32768 and up), so that no client takes a port that was found free."""


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


def start(
    process: Process,
    *,
    spawned: Callable[[Running], None] = lambda _: None,
    wanted: Callable[[], bool] = lambda: True,
) -> Running:
    """Start ``process`` and wait until it is ready.

    Args:
        process: what to run.
        spawned: hears of the process as soon as it exists, before it is ready.
        wanted: asked while waiting; False ends the wait and the process.

    Raises:
        StartFailed: it ended early, was not ready in time or is not wanted any more; it has been stopped.
    """
    process.log.parent.mkdir(parents=True, exist_ok=True)
    before = process.log.stat().st_size if process.log.exists() else 0
    with process.log.open("ab") as log:
        try:
            popen = subprocess.Popen(
                process.argv,
                env=dict(process.env),
                cwd=process.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"{process.name} cannot be started: {process.argv[0]}: {error.strerror}") from error
    running = Running(process, popen)
    spawned(running)
    deadline = time.monotonic() + process.ready_within
    while not process.ready():
        if popen.poll() is not None:
            how = f"ended with code {popen.returncode}"
        elif time.monotonic() > deadline:
            how = f"was not ready within {process.ready_within:.0f} s"
        elif not wanted():
            how = "is not wanted any more"
        else:
            time.sleep(0.05)
            continue
        stop(running)
        said = process.log.read_bytes()[before:].decode(errors="replace")[-2000:].strip()
        raise StartFailed(
            f"{process.name} {how}; {'the end of' if said else 'nothing in'} {process.log}\n{said}".strip()
        )
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


def disown(running: Running) -> None:
    """Leave the process to others, who know its id: Python would complain that it still runs when we forget it."""
    running.popen.returncode = 0


def free_ports(count: int) -> list[int]:
    """``count`` loopback TCP ports that nobody listens on now, all different.

    They are picked at random, so that two sandboxes that start at once hardly ever pick the same.

    Raises:
        OSError: nearly every port is taken.
    """
    found = list(itertools.islice(filter(free, random.sample(_PORTS, len(_PORTS))), count))
    if len(found) < count:
        raise OSError(f"fewer than {count} of the loopback ports {_PORTS.start} to {_PORTS.stop - 1} are free")
    return found


def free(port: int) -> bool:
    """Whether a loopback TCP port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: lingering connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def accepts(port: int) -> bool:
    """Whether somebody listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
