"""Which processes are ours, and how they end.

A process id alone proves nothing: ids are used again. A process is named by its id *and* when it started, and the
processes of a sandbox are known by what they carry: a variable in their environment that children inherit, a home on
the sandbox's disk, or a job of its Slurm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

MARKER = "BBPWF_SANDBOX"
"""Name of the variable that every process of a sandbox carries; its value is the sandbox's folder."""

_PROC = Path("/proc")
_SLURM_DAEMONS = frozenset({"munged", "slurmctld", "slurmd", "slurmstepd", "slurmscriptd"})


class ProcessId(BaseModel):
    """One process of all that ever had this number: it started ``started`` clock ticks after boot ``boot``."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: int
    boot: str

    def alive(self) -> bool:
        """Whether this very process still runs; one that only waits for its parent to notice does not."""
        seen = _look(self.pid)
        return seen is not None and seen.started == self.started and seen.state not in "ZX" and self.boot == boot_id()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process is still this one."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class _Look:
    state: str
    parent: int
    started: int


def boot_id() -> str:
    """What Linux calls this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """The process that has this number now; ``None`` if none has, or if it has ended."""
    seen = _look(pid)
    return None if seen is None or seen.state in "ZX" else ProcessId(pid=pid, started=seen.started, boot=boot_id())


def _look(pid: int) -> _Look | None:
    try:
        # proc(5): the name, in parentheses, may hold anything; state is field 3, ppid 4, starttime 22
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return _Look(state=fields[0], parent=int(fields[1]), started=int(fields[19]))


def _all() -> dict[int, _Look]:
    numbers = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {pid: seen for pid in numbers if (seen := _look(pid)) is not None}


def descendants(roots: Iterable[ProcessId]) -> list[ProcessId]:
    """The living among ``roots``, and everything that they started and that is still under them."""
    everything = _all()
    children: dict[int, list[int]] = {}
    for pid, seen in everything.items():
        children.setdefault(seen.parent, []).append(pid)
    found: dict[int, ProcessId] = {}
    waiting = [root.pid for root in roots if root.alive()]
    while waiting:
        pid = waiting.pop()
        if pid not in found and (process := identify(pid)) is not None:
            found[pid] = process
            waiting.extend(children.get(pid, ()))
    return list(found.values())


def belonging(*folders: Path) -> list[ProcessId]:
    """Every process on this machine that belongs to one sandbox; never we or one that we run under.

    ``folders`` are the absolute names under which the sandbox's processes may know its folder. A shell in which
    somebody set the sandbox's client variables, or stands in its folder, does not belong to it.
    """
    ours = _lineage()
    return [
        process
        for pid in _all()
        if pid not in ours and _belongs(pid, folders) and (process := identify(pid)) is not None
    ]


def _lineage() -> set[int]:
    found: set[int] = set()
    pid = os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        seen = _look(pid)
        pid = seen.parent if seen is not None else 0
    return found


def _belongs(pid: int, folders: Sequence[Path]) -> bool:
    try:
        entries = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    env = dict(_pairs(entries))
    if env.get(MARKER) in {str(folder) for folder in folders}:
        return True
    inside = tuple(f"{folder}/" for folder in folders)
    if env.get("HOME", "").startswith(inside):
        return True
    name = _name(pid)
    if env.get("SLURM_CONF", "").startswith(inside) and ("SLURM_JOB_ID" in env or name in _SLURM_DAEMONS):
        return True
    # sshd writes its status over its environment; it keeps its log open
    return name == "sshd" and any(target.startswith(inside) for target in _open_files(pid))


def _pairs(entries: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, equals, value = os.fsdecode(entry).partition("=")
        if equals:
            yield name, value


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(entry.readlink())


def wait_gone(processes: Iterable[ProcessId], *, within: float) -> list[ProcessId]:
    """Those of ``processes`` that still live after at most ``within`` seconds."""
    left = list(processes)
    deadline = time.monotonic() + within
    while True:
        for process in left:
            _reap(process)
        left = [process for process in left if process.alive()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _reap(process: ProcessId) -> None:
    """Take note of an ended child of ours, so that it does not stay as a zombie for as long as we live."""
    seen = _look(process.pid)
    if seen is not None and seen.state == "Z" and seen.parent == os.getpid() and seen.started == process.started:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def end(processes: Iterable[ProcessId], *, grace: float) -> list[ProcessId]:
    """SIGTERM to all, SIGKILL to those that live ``grace`` seconds later; what even then lives is returned."""
    wanted = list(processes)
    for process in wanted:
        process.signal(signal.SIGTERM)
    for process in (left := wait_gone(wanted, within=grace)):
        process.signal(signal.SIGKILL)
    return wait_gone(left, within=5.0)


def listens(port: int) -> list[int]:
    """Inode numbers of the sockets that listen on a loopback TCP port (nothing is connected to)."""
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(int(fields[9]))
    return found


def listener(port: int, processes: Iterable[ProcessId]) -> bool:
    """Whether one of ``processes`` is who listens on ``port``, rather than a stranger."""
    sockets = {f"socket:[{inode}]" for inode in listens(port)}
    return bool(sockets) and any(sockets & set(_open_files(process.pid)) for process in processes)
