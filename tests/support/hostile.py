"""A workflow that tries whatever it should not be able to do, and writes down what became of it.

Sent to a service as an attachment; run by itself (``python hostile.py TARGETS``) it shows what a process of the same
user could do that is not contained. TARGETS is JSON: lists of paths, sockets, ports and processes that are not its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import luigi

REFUSED = "refused: "
_PTRACE_ATTACH, _PTRACE_DETACH, _CLONE_NEWUSER = 16, 17, 0x10000000
_PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}


def attempt(deed: Callable[..., Any], *of: Any) -> str:
    try:
        return f"done: {deed(*of)!r}"[:300]
    except (OSError, MemoryError, ValueError) as error:
        return f"{REFUSED}{type(error).__name__} {error}"[:300]


def _libc(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def _read(path: str) -> bytes:
    return Path(path).read_bytes()[:40]


def _list(path: str) -> list[str]:
    return sorted(each.name for each in Path(path).iterdir())


def _trace(pid: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    _libc(libc.ptrace(_PTRACE_ATTACH, pid, None, None))
    os.waitpid(pid, 0x40000000)
    libc.ptrace(_PTRACE_DETACH, pid, None, None)
    return "traced"


def _read_memory(pid: int) -> str:
    start = int(Path(f"/proc/{pid}/maps").read_text().partition("-")[0], 16)
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(start)
        return memory.read(4).hex()


def _peek(pid: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    place = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(place), 8)
    _libc(libc.syscall(_PROCESS_VM_READV[os.uname().machine], pid, vector, 1, vector, 1, 0))
    return "peeked"


def _converse(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect("\0" + path[1:] if path.startswith("@") else path)
        line.sendall(b'{"method": "cluster", "params": {}}\n')
        answer = line.recv(200)
        if not answer:
            raise OSError("hung up on")
        return answer.decode()


def _call(address: tuple[str, int]) -> str:
    with socket.create_connection(address, 5):
        return "connected"


def _listen() -> str:
    with socket.create_server(("127.0.0.1", 0)):
        return "listening"


def _become_root_inside() -> str:
    """In a child: it would be root of a namespace of its own, with all that the kernel then lets it do."""
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.suppress(OSError):
            _libc(libc.unshare(_CLONE_NEWUSER))
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {os.geteuid()} 1")
            os._exit(0)
        os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError("refused")
    return "root of a namespace"


def _remove(path: str) -> str:
    Path(path).unlink()
    return "removed"


def _replace(path: str) -> str:
    Path(path + ".x").symlink_to("/etc/passwd")
    Path(path + ".x").rename(path)
    return "replaced"


def _append(path: str) -> str:
    with Path(path).open("a") as file:
        file.write("x")
    return "written"


def attempts(targets: dict[str, Any]) -> dict[str, str]:
    """What harms nobody, even if it succeeds."""
    found: dict[str, str] = {}
    for path in targets["files"]:
        found[f"read {path}"] = attempt(_read, path)
    for path in targets["folders"]:
        found[f"list {path}"] = attempt(_list, path)
        found[f"write into {path}"] = attempt(_append, f"{path}/left-by-hostile")
    for pid in targets["processes"]:
        found[f"environment of {pid}"] = attempt(_read, f"/proc/{pid}/environ")
        found[f"memory of {pid}"] = attempt(_read_memory, pid)
        found[f"files of {pid}"] = attempt(_list, f"/proc/{pid}/fd")
        found[f"folder of {pid}"] = attempt(_list, f"/proc/{pid}/root/proc/{pid}/cwd/")
        found[f"trace {pid}"] = attempt(_trace, pid)
        found[f"look into {pid}"] = attempt(_peek, pid)
        found[f"signal {pid}"] = attempt(os.kill, pid, 0)
    for path in targets["sockets"]:
        found[f"talk to {path}"] = attempt(_converse, path)
    for host, port in targets["addresses"]:
        found[f"connect to {host}:{port}"] = attempt(_call, (host, port))
    found["listen"] = attempt(_listen)
    found["a namespace of its own"] = attempt(_become_root_inside)
    return found


def violence(targets: dict[str, Any]) -> dict[str, str]:
    """What would hurt."""
    found = {}
    for pid in targets["processes"]:
        found[f"kill {pid}"] = attempt(os.kill, pid, signal.SIGKILL)
    for path in targets["replace"]:
        found[f"remove {path}"] = attempt(_remove, path)
        found[f"replace {path}"] = attempt(_replace, path)
        found[f"append to {path}"] = attempt(_append, path)
    for uid in (0, targets["uid"]):
        found[f"become {uid}"] = attempt(os.setresuid, uid, uid, uid)
        found[f"join {uid}"] = attempt(os.setgroups, [uid])
    found["give away"] = attempt(os.chown, ".", targets["uid"], -1)
    found["more of everything"] = attempt(resource.setrlimit, resource.RLIMIT_AS, (-1, -1))
    found["memory"] = attempt(mmap.mmap, -1, 64 * 1024**3)
    found["disk"] = attempt(_fill)
    found["dump"] = attempt(resource.setrlimit, resource.RLIMIT_CORE, (1, 1))
    return found


def _fill() -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Path("big").open("wb") as file:
        try:
            os.truncate(file.fileno(), 1 << 40)
        finally:
            Path("big").unlink()
    return "a terabyte"


def multiply(seconds: float) -> int:
    """How many processes there could be of it."""
    children = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            child = os.fork()
        except OSError:
            break
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
        if len(children) > 5000:
            break
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(children)


def about_itself() -> dict[str, Any]:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    descriptors = {}
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            descriptors[each.name] = str(each.readlink())
    return {
        "environment": dict(os.environ),
        "uids": status["Uid"].split(),
        "gids": status["Gid"].split(),
        "groups": status["Groups"].split(),
        "capabilities": [status[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Amb")],
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "descriptors": descriptors,
        "cwd": str(Path.cwd()),
    }


class Hostile(luigi.Task):
    """Tries everything."""

    targets = luigi.DictParameter()

    def run(self) -> None:
        targets = json.loads(json.dumps(dict(self.targets), default=list))
        report: dict[str, Any] = {
            "itself": about_itself(),
            "attempts": attempts(targets),
            "violence": violence(targets),
        }
        report["processes"] = multiply(20.0)
        Path("report.json").write_text(json.dumps(report, default=str))

    def complete(self) -> bool:
        return Path("report.json").exists()


class Ends(luigi.Task):
    """Leaves something else than an outcome."""

    how = luigi.Parameter()
    secret = luigi.Parameter()

    def complete(self) -> bool:
        outcome = Path("outcome-1.json")
        if self.how == "link":
            outcome.symlink_to(self.secret)
        elif self.how == "hard link":
            with contextlib.suppress(OSError):
                outcome.hardlink_to(self.secret)
            if not outcome.exists():  # the kernel is careful
                outcome.mkdir()
        elif self.how == "pipe":
            os.mkfifo(outcome)
        elif self.how == "huge":
            with outcome.open("wb") as file:
                file.truncate(16 * 1024 * 1024)
        elif self.how == "folder":
            Path("elsewhere").mkdir()
            Path.cwd().chmod(0)
        elif self.how == "garbage":
            outcome.write_bytes(b'{"state": "COMPLETE", "reason": ' + b"[" * 100_000)
        os._exit(0)


class Stays(luigi.Task):
    """Leaves processes behind that nobody started, and ends for nothing."""

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # hide whose it is
                    os.closerange(0, 1000)
                    time.sleep(3600)
                os._exit(0)
        Path("stays").write_text("")
        while True:
            time.sleep(60)


class Shouts(luigi.Task):
    """Says more than anybody can keep."""

    def run(self) -> None:
        line = b"x" * 65536 + b"\n"
        for _ in range(800):
            os.write(2, line)
        os.write(2, b"no end" * 100_000)

    def complete(self) -> bool:
        return False


if __name__ == "__main__":
    json.dump(attempts(json.loads(Path(sys.argv[1]).read_text())), sys.stdout)
