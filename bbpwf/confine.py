"""Give up what a process may not have, and above all one of user code: ``python -I -S confine.py SPEC -- command…``.

That gives up everything that SPEC says, for good, and becomes the command. It is run by its path and with nothing but
the standard library, before any file of a user is looked at, and after whoever started it changed the uid. SPEC is the
JSON of a :class:`service.containment.Cell`. Gone are capabilities, new privileges (``PR_SET_NO_NEW_PRIVS``), resources
beyond limits, and by Landlock the files, TCP ports and processes of others. What was asked for and cannot be had ends
the process instead of being left out.

Numbers are those of Linux' ``include/uapi/linux/{prctl,capability,landlock}.h``; system calls have the same number on
x86-64 and arm64.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import stat
import sys

FAILED = 125
"""Exit code of a process that could not be contained, as of ``env`` and ``timeout``."""

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 4, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH, _NET_PORT = 1, 1, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_DEVICES = 1 << 6 | 1 << 11
"""Making device files, which is granted nowhere."""
_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
"""Since which version of Landlock there are how many rights on files."""
NETWORK_SINCE, SCOPES_SINCE = 4, 6
_CONNECT_TCP, _BIND_AND_CONNECT, _SCOPES = 2, 3, 3


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _done(answer: int, what: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return answer


def landlock_version() -> int:
    """Which version of Landlock the kernel offers; 0 if none."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def drop_capabilities() -> None:
    """Keep no capability."""
    libc = _libc()
    _done(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
    none = (ctypes.c_uint32 * 6)()
    _done(libc.capset(ctypes.byref(_CapHeader(_CAPABILITY_VERSION_3, 0)), none), "capabilities")


def keep_private() -> None:
    """Let nobody look into this process, which holds secrets, and keep none of the service's capabilities."""
    _done(_libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "not to be looked into")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    be_ordinary()


def be_ordinary() -> None:
    """Drop the capabilities that only the service needs. Root keeps its own: it is a test's or a developer's."""
    if os.geteuid() != 0:
        drop_capabilities()


def restrict(read: list[str], write: list[str], ports: list[int]) -> None:
    """Allow these files and folders, these ports of TCP servers, and no process outside: as far as the kernel can."""
    libc = _libc()
    version = landlock_version()
    if version == 0:
        return
    count = next(bits for since, bits in reversed(_RIGHTS) if version >= since)
    every = (1 << count) - 1
    ruleset = _Ruleset(
        every,
        _BIND_AND_CONNECT if version >= NETWORK_SINCE else 0,
        _SCOPES if version >= SCOPES_SINCE else 0,
    )
    size = 24 if version >= SCOPES_SINCE else 16 if version >= NETWORK_SINCE else 8
    rules = _done(libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0), "Landlock")
    for paths, allowed in ((read, _READ), (write, every & ~_DEVICES)):
        for path in paths:
            _allow_path(libc, rules, path, allowed)
    for port in ports if version >= NETWORK_SINCE else ():
        rule = _NetPort(_CONNECT_TCP, port)
        _done(libc.syscall(_ADD_RULE, rules, _NET_PORT, ctypes.byref(rule), 0), f"Landlock for port {port}")
    _done(libc.syscall(_RESTRICT_SELF, rules, 0), "Landlock")
    os.close(rules)


def _allow_path(libc: ctypes.CDLL, rules: int, path: str, allowed: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return  # what cannot be reached needs no leave
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            allowed &= _OF_FILES
        rule = _PathBeneath(allowed, opened)
        _done(libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0), f"Landlock for {path}")
    finally:
        os.close(opened)


def _limit(limits: dict[str, int]) -> None:
    for name, most in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (bound, bound))


def _first_to_go() -> None:
    """If memory runs out, this process goes before the service and the agent do."""
    with contextlib.suppress(OSError):  # a precaution only
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, b"800")
        os.close(score)


def main(argv: list[str]) -> None:
    """Become the command; returns only by an exception."""
    spec = json.loads(argv[0])
    if argv[1] != "--" or (spec["uid"] is not None and os.getresuid() != (spec["uid"],) * 3):
        raise OSError(f"this process has the uids {os.getresuid()}, not {spec['uid']}")
    os.umask(0o027)
    _limit(spec["limits"])
    _first_to_go()
    drop_capabilities()
    _done(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    if spec["landlock"]:
        restrict(spec["read"], spec["write"], spec["ports"])
    os.execve(argv[2], argv[2:], os.environ)  # noqa: S606 becoming the command is what this module is for


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"this process could not be contained: {error}\n")
        sys.exit(FAILED)
