"""The Slurm that is measured, and how commands reach it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import headnode
from sandbox.headnode import HeadNode


@dataclass(frozen=True)
class Ran:
    """A command that ended: seconds by the clock, processor seconds and peak memory (MB) of it and its children."""

    wall: float
    cpu: float
    peak_mb: float
    began: float
    ended: float
    output: str


@dataclass(frozen=True)
class Site:
    """A running cluster, and the environment for a bbpwf that uses it."""

    head: HeadNode
    folder: Path

    def env(self, state: str, **more: str) -> dict[str, str]:
        """The whole environment of a bbpwf command with a state folder of its own."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {
            **kept,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "BBPWF_STATE_DIR": str(self.folder / state),
            "BBPWF_CLUSTER__KIND": "ssh",
            "BBPWF_CLUSTER__HOST": "127.0.0.1",
            "BBPWF_CLUSTER__PORT": str(self.head.sshd.port),
            "BBPWF_CLUSTER__USER": self.head.sshd.user,
            "BBPWF_CLUSTER__KEY_FILE": str(self.head.sshd.sim_key),
            "BBPWF_CLUSTER__DATA_ROOT": str(self.head.data_root / state),
            "BBPWF_CLUSTER__LUSTRE": "false",
            "BBPWF_LOG_LEVEL": "WARNING",
            **more,
        }

    def bbpwf(self, *argv: str, state: str, timeout: float = 900.0) -> Ran:
        """Run a bbpwf command to its end. Raises RuntimeError with its output if it fails."""
        return run([sys.executable, "-P", "-m", "bbpwf.cli.main", *argv], self.env(state), timeout)

    def file(self, name: str) -> Path:
        """A path on the shared disk."""
        return self.head.data_root / name

    def slurm(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> str:
        """One of Slurm's commands on the head node itself; its output. Raises RuntimeError if it fails."""
        env = {**self.head.slurm.env, "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        done = subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{argv[0]} failed: {done.stderr}")
        return done.stdout

    def wait_empty(self, timeout: float = 600.0) -> None:
        """Wait until the queue is empty."""
        deadline = time.monotonic() + timeout
        while self.slurm("squeue", "--noheader").strip():
            if time.monotonic() > deadline:
                raise RuntimeError("the queue does not get empty")
            time.sleep(0.5)


def run(argv: list[str], env: Mapping[str, str], timeout: float) -> Ran:
    """Run a command, and account for it. Raises RuntimeError with its output if it fails or takes too long."""
    began, start = time.time(), time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = start + timeout
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                process.kill()
                os.wait4(process.pid, 0)
                process.returncode = -9
                raise RuntimeError(f"{' '.join(argv)} did not end within {timeout:.0f} s")
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with code {process.returncode}:\n{text[-3000:]}")
    return Ran(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, began, time.time(), text)


@contextmanager
def site(**options: Any) -> Iterator[Site]:
    """A cluster for one benchmark or several; ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-b-", dir="/tmp"))
    try:
        with headnode.running(folder, **options) as head:
            yield Site(head, folder / "states")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
