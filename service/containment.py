"""What keeps the code of users in: uids of their own, folders of their own, and what :mod:`bbpwf.confine` takes away.

::

    <heads>/<name>/        0750, ours, readable for the cell's group: what we give it (request, attachments, socket)
    <heads>/<name>/work/   the cell's own: its home, what it writes; we may look inside

A *cell* is one process of user code with everything that it starts. While it is in use nobody else has its uid, and
when it is left every process of that uid is killed and its folder closed to everybody but us, so that the uid can be
given to another.

Layers: without the right to change uids (root, or CHOWN, KILL, SETGID and SETUID) cells share ours, and what Landlock
keeps from them is all that is kept; without Landlock only what the uid keeps from them is. :attr:`Containment.gaps`
says what is missing, and so do the log and ``/readyz``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import bbpwf
from bbpwf import confine
from bbpwf.errors import InvalidConfig, LimitExceeded
from bbpwf.settings import Settings

_log = logging.getLogger(__name__)

Level = Literal["contained", "partly contained", "not contained"]

_READ = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin"),
    *("/proc", "/sys/devices/system", "/dev/urandom", "/dev/random", "/dev/zero"),
)
_READ_OF_ETC = (
    *("alternatives", "ca-certificates", "ca-certificates.conf", "gai.conf", "group", "host.conf", "hosts"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "passwd", "pki"),
    *("protocols", "python3", "python3.11", "resolv.conf", "services", "ssl", "timezone"),
)
_WRITE = ("/dev/null", "/dev/shm")  # noqa: S108  where multiprocessing has its semaphores
_PROBE = "import pathlib, bbpwf.errors; pathlib.Path('request').read_bytes(); pathlib.Path('work/x').write_text('')"
_PROBE_S = 30.0
_NEEDED = {"CHOWN": 0, "KILL": 5, "SETGID": 6, "SETUID": 7}
_EVICT_S = 10.0


@dataclass(frozen=True)
class Cell:
    """Where one process of user code may live, and how it is started there."""

    folder: Path
    uid: int | None
    """``None``: ours."""
    spec: Mapping[str, Any] = field(repr=False)

    @property
    def work(self) -> Path:
        """Its own folder."""
        return self.folder / "work"

    def command(self, argv: Sequence[str]) -> list[str]:
        """What to execute, as :attr:`identity`, so that ``argv`` runs contained."""
        return [sys.executable, "-I", "-S", str(Path(confine.__file__)), json.dumps(self.spec), "--", *argv]

    def limited(self, limits: Mapping[str, int]) -> Cell:
        """The same with these of its resources limited further."""
        both = {**self.spec["limits"], **limits}
        if self.uid is None:
            both.pop("NPROC", None)  # it counts all processes of a uid, ours too
        return replace(self, spec={**self.spec, "limits": both})

    @property
    def identity(self) -> dict[str, Any]:
        """Arguments of :class:`subprocess.Popen`."""
        return {} if self.uid is None else {"user": self.uid, "group": self.uid, "extra_groups": []}

    def read(self, path: str, limit: int) -> bytes | None:
        """A plain file in its own folder, not trusting what is there; ``None`` if there is none.

        Raises:
            LimitExceeded: it is no plain file of its own, or longer than ``limit`` bytes.
        """
        try:
            folder = os.open(self.work, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        try:
            return _read_plain(path, folder, self.uid, limit)
        finally:
            os.close(folder)


def _read_plain(name: str, folder: int, uid: int | None, limit: int) -> bytes | None:
    try:
        # neither a link to a file of ours, nor a pipe to wait at
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LimitExceeded(f"{name} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(opened)
        whose = os.geteuid() if uid is None else uid
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid != whose:
            raise LimitExceeded(f"{name} is not a plain file of its own")
        if found.st_size > limit:
            raise LimitExceeded(f"{name} is longer than {limit} bytes")
        content = b""
        while piece := os.read(opened, limit + 1 - len(content)):
            content += piece
        return content
    finally:
        os.close(opened)


class Containment:
    """Gives out cells. :meth:`prepare` comes first; the rest may be called from any thread.

    Args:
        settings: the instance's.
        scheduler_port: where Luigi's scheduler listens.
    """

    def __init__(self, settings: Settings, scheduler_port: int) -> None:
        self._settings = settings
        self._heads = settings.heads
        self.root = self._heads.folder.expanduser().absolute() if self._heads.folder else settings.state / "heads"
        self._ports = sorted({scheduler_port, *self._heads.ports, *_port_of(str(settings.nexus.url or ""))})
        self._guard = threading.Lock()
        self._in_use: set[int] = set()
        self._landlock = confine.landlock_version()
        self._readable = _code(settings.service.task_modules)
        self._prepared = False
        self.isolated = False
        self.gaps: tuple[str, ...] = ("not looked at yet",)

    @property
    def level(self) -> Level:
        """In one word, for everybody."""
        if self.isolated and not self.gaps:
            return "contained"
        return "partly contained" if self.isolated or self._landlock else "not contained"

    def prepare(self) -> None:
        """Find out what can be had, by trying it.

        Raises:
            InvalidConfig: a uid of their own is required, and cannot be had.
        """
        if self._prepared:
            return
        reason = self._why_not_isolated()
        self.isolated = not reason
        gaps = [f"user code has no uid of its own: {reason}"] if reason else []
        if reason and self._heads.require_isolation:
            raise InvalidConfig(
                gaps[0],
                hint="Start it as root or with the capabilities CHOWN, KILL, SETGID and SETUID, or set "
                "BBPWF_HEADS__REQUIRE_ISOLATION=false and trust every user with the agent's secrets.",
            )
        if not self._landlock:
            gaps.append("this kernel has no Landlock: any file that others may read can be read")
        if self._landlock < confine.NETWORK_SINCE:
            gaps.append("this kernel cannot limit TCP ports: the cloud's metadata has to be kept away by a firewall")
        elif 80 in self._heads.ports:
            gaps.append("port 80 is allowed: the cloud's metadata has to be kept away by a firewall")
        if reason and self._landlock < confine.SCOPES_SINCE:
            gaps.append("this kernel cannot keep signals to itself")
        if self._settings.cluster.kind == "local" or self._heads.local_cluster:
            gaps.append("jobs on this machine run as the agent's own user")
        self.gaps = tuple(gaps)
        for gap in self.gaps:
            _log.warning("containment: %s", gap)
        self._prepared = True

    def _why_not_isolated(self) -> str:
        missing = _missing_capabilities()
        if missing:
            self._make_root(0o700)
            return f"this process is neither root nor has the capabilities {', '.join(missing)}"
        self.isolated = True  # so that the probe is
        try:
            self._make_root(0o711)
            if self.root.parent == self._settings.state:
                self._settings.state.chmod(0o711)
            return self._probe()
        except OSError as error:
            return f"{self.root} cannot be used: {error.strerror or error}"

    def _make_root(self, mode: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(mode)

    def _probe(self) -> str:
        with self.passing("probe-") as cell:
            request = cell.folder / "request"
            request.write_text("")
            request.chmod(0o644)
            argv = cell.command([sys.executable, "-P", "-c", _PROBE])
            env = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
            try:
                done = subprocess.run(
                    argv,
                    env=env,
                    cwd=cell.folder,
                    check=False,
                    capture_output=True,
                    timeout=_PROBE_S,
                    **cell.identity,
                )
            except (OSError, subprocess.SubprocessError) as error:
                return f"nothing can be run as another user: {error}"
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
            return f"what is run as another user fails: {said}" if done.returncode else ""

    def enter(self, name: str) -> Cell:
        """The cell of this name, with a uid that nobody else has now; its folder is kept from one time to the next."""
        folder = self.root / name
        folder.mkdir(exist_ok=True, parents=True, mode=0o700)
        work = folder / "work"
        if not self.isolated:
            for made in (work, work / "tmp"):
                made.mkdir(exist_ok=True, mode=0o700)
            return self._cell(folder, None)
        uid = self._take(work)
        self._evict(uid)
        if not work.is_dir():
            work.mkdir()
            (work / "tmp").mkdir()
            for made in (work / "tmp", work):
                made.chmod(0o2770)  # the group stays ours
                os.chown(made, uid, -1)
        os.chown(folder, -1, uid)
        folder.chmod(0o750)
        return self._cell(folder, uid)

    def leave(self, cell: Cell) -> None:
        """Kill whatever is left in the cell, and close its folder. The uid may be somebody else's from now on."""
        if cell.uid is None:
            return
        self._evict(cell.uid)
        with contextlib.suppress(OSError):
            cell.folder.chmod(0o700)
        with self._guard:
            self._in_use.discard(cell.uid)

    def rename(self, cell: Cell, name: str) -> Cell | None:
        """The cell with all that runs in it under a name that no cell has; ``None`` if one has it."""
        folder = self.root / name
        if folder.exists():
            return None
        cell.folder.rename(folder)  # what Landlock allows is remembered by inode, and moves with it
        return self._cell(folder, cell.uid)

    def remove(self, cell: Cell) -> None:
        """Leave a cell for good, with everything in it."""
        self.leave(cell)
        with contextlib.suppress(OSError, RecursionError):
            if cell.uid is not None:
                _reclaim(os.open(cell.folder, os.O_RDONLY | os.O_DIRECTORY), "work")
            shutil.rmtree(cell.folder)

    @contextlib.contextmanager
    def passing(self, prefix: str) -> Iterator[Cell]:
        """A cell that is left and removed at the end."""
        cell = self.enter(prefix + secrets.token_hex(8))
        try:
            yield cell
        finally:
            self.remove(cell)

    def _take(self, work: Path) -> int:
        first, count = self._heads.first_uid, self._heads.uids
        with self._guard:
            try:
                owner = work.lstat().st_uid
            except FileNotFoundError:
                owner = -1
            if first <= owner < first + count and owner not in self._in_use:
                uid = owner
            else:
                if owner >= 0:  # somebody else has its uid now: what it wrote is put aside
                    work.rename(work.with_name(f"work-{time.time_ns()}"))
                uid = next(each for each in iter(lambda: first + secrets.randbelow(count), -1) if self._is_free(each))
            self._in_use.add(uid)
            return uid

    def _is_free(self, uid: int) -> bool:
        return uid not in self._in_use and not _processes_of(uid)

    def _cell(self, folder: Path, uid: int | None) -> Cell:
        heads = self._heads
        work = folder / "work"
        limits = {
            "CORE": 0,
            "AS": heads.memory_mb * 1024 * 1024,
            "NOFILE": heads.open_files,
            "FSIZE": heads.file_mb * 1024 * 1024,
        }
        if uid is not None:
            limits["NPROC"] = heads.processes
        read = [*_READ, *(f"/etc/{name}" for name in _READ_OF_ETC), *self._readable, str(folder)]
        read += [str(each) for each in (*self._settings.service.workflows_path, *heads.read_paths)]
        write = [*_WRITE, str(work), *(str(each) for each in heads.write_paths)]
        spec = {
            "uid": uid,
            "limits": limits,
            "landlock": bool(self._landlock),
            "read": read,
            "write": write,
            "ports": self._ports,
        }
        return Cell(folder, uid, spec)

    def _evict(self, uid: int) -> None:
        """Kill every process of a uid of ours, however fast they multiply: their number is limited."""
        deadline = time.monotonic() + _EVICT_S
        first = self._heads.first_uid
        if not first <= uid < first + self._heads.uids:
            return
        while left := _processes_of(uid):
            for sign in (signal.SIGSTOP, signal.SIGKILL):  # stopped, none can make another
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sign)
            if time.monotonic() > deadline:
                _log.error("processes of the uid %d do not end: %s", uid, left[:10])
                return
            time.sleep(0.01)


def _processes_of(uid: int) -> list[int]:
    """Live processes of a uid, by what the kernel says: the owner of ``/proc/<pid>`` is theirs to change."""
    found = []
    mine = f"\nUid:\t{uid}\t".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = Path(entry.path, "status").read_bytes()
                if mine in status and b"\nState:\tZ" not in status:
                    found.append(int(entry.name))
    return found


def _missing_capabilities() -> list[str]:
    if os.geteuid() == 0:
        return []
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapEff:")[2].split()[0], 16)
    return [name for name, bit in _NEEDED.items() if not held >> bit & 1]


def _port_of(url: str) -> set[int]:
    parts = urlsplit(url)
    return {parts.port or (80 if parts.scheme == "http" else 443)} if parts.hostname else set()


def _code(task_modules: Sequence[str]) -> list[str]:
    """Where the interpreter, its packages, bbpwf and the instance's own task modules are."""
    found = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent), str(Path(bbpwf.__file__).parent)}
    found.update(each for each in sys.path if Path(each).name in {"site-packages", "dist-packages"})
    for name in {"tasks", *(module.partition(".")[0] for module in task_modules)}:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            found.update(spec.submodule_search_locations or [str(spec.origin)])
    return sorted(found)


def _reclaim(parent: int, name: str) -> None:
    """Make a folder of a cell that was left ours again, with all folders in it, so that they can be removed."""
    try:
        os.chown(name, os.geteuid(), -1, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, 0o700, dir_fd=parent)
        opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    finally:
        os.close(parent)
    for inside in [each.name for each in os.scandir(opened) if each.is_dir(follow_symlinks=False)]:
        _reclaim(os.dup(opened), inside)
    os.close(opened)
