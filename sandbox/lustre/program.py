"""The ``lfs`` command: ``hsm_state``, ``hsm_action``, ``hsm_archive`` and its kin, as contracts §5 has them.

Privilege is an environment variable that the sandbox's ``sudo`` sets. Releasing a file keeps its data in place:
the transparent restore on reading, which needs a kernel, thus works.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from sandbox.lustre.copytool import kick
from sandbox.lustre.files import ARCHIVED, DIRTY, EXISTS, LOST, NOARCHIVE, NORELEASE, RELEASED, WORDS, Files, Record

PRIVILEGE = "BBPWF_SANDBOX_SUDO"
_HELP = 4  # CMD_HELP
_BATCH = 52
_FLAGS = {
    "exists": EXISTS,
    "archived": ARCHIVED,
    "dirty": DIRTY,
    "lost": LOST,
    "norelease": NORELEASE,
    "noarchive": NOARCHIVE,
}
_REQUESTS = {
    "hsm_archive": "ARCHIVE",
    "hsm_restore": "RESTORE",
    "hsm_release": "RELEASE",
    "hsm_remove": "REMOVE",
    "hsm_cancel": "CANCEL",
}


class _Ends(Exception):
    """The command ends here, with this exit code and word on stderr."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text


def main(folder: str, argv: list[str]) -> int:
    """Run one command on the state in ``folder``; returns its exit code."""
    files = Files(Path(folder))
    verb, rest = (argv[0], argv[1:]) if argv else ("", [])
    try:
        if verb in ("hsm_state", "hsm_action"):
            return _look(files, verb, rest)
        if verb in _REQUESTS:
            return _request(files, verb, rest)
        if verb in ("hsm_set", "hsm_clear"):
            return _flag(files, verb, rest)
    except _Ends as end:
        _say(sys.stderr.fileno(), end.text)
        return end.code
    _say(sys.stderr.fileno(), f"lfs: '{verb}' is not a command of this double.\n")
    return _HELP


def _look(files: Files, verb: str, paths: list[str]) -> int:
    if not paths:
        raise _Ends(_HELP, _usage(verb))
    faults = files.faults()
    first = 0
    unfinished = False
    for path in paths:
        try:
            found = Path(path).stat()
            if not files.on_lustre(path):
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        except OSError as problem:
            code = problem.errno or 1
            what = "state" if verb == "hsm_state" else "action"
            if not faults.on("newer"):  # 2.15 stops at the first file that fails
                raise _Ends(code, f"can't get hsm {what} for {path}: {os.strerror(code)}\n") from None
            text = f"lfs {verb}: get HSM {what} for '{path}' failed: {os.strerror(code)}\n"
            _say(sys.stderr.fileno(), text)
            first = first or code
            continue
        real = os.path.realpath(path)
        record = files.get(real, found)
        if faults.on("auto_export") and stat.S_ISREG(found.st_mode) and not record.action and not _current(record):
            with files.lock():
                files.enqueue(record, "ARCHIVE", faults.number("delay_s", 1.0))
        unfinished = unfinished or bool(record.action)
        _say(sys.stdout.fileno(), _state_line(path, record) if verb == "hsm_state" else _action_line(path, record))
    if unfinished:
        kick(files)
    return first


def _current(record: Record) -> bool:
    return record.mask & ARCHIVED != 0 and record.mask & (DIRTY | LOST) == 0


def _state_line(path: str, record: Record) -> str:
    words = "".join(f" {word}" for bit, word in WORDS if record.mask & bit)
    archive = f", archive_id:{record.archive_id}" if record.archive_id else ""
    return f"{path}: (0x{record.mask:08x}){words}{archive}\n"


def _action_line(path: str, record: Record) -> str:
    if not record.action:
        return f"{path}: NOOP\n"
    if record.running and record.action in ("ARCHIVE", "RESTORE"):
        return f"{path}: {record.action} running ({record.moved} bytes moved)\n"
    return f"{path}: {record.action} {'running' if record.running else 'waiting'} (from 0 to EOF)\n"


def _request(files: Files, verb: str, argv: list[str]) -> int:
    archive_id, paths = _request_options(verb, argv)
    found = []
    for path in paths:
        try:
            status = Path(path).lstat()
        except OSError as problem:
            code = problem.errno or 1
            raise _Ends(code, f"Cannot stat {path}: {os.strerror(code)}\n") from None
        if not stat.S_ISREG(status.st_mode):
            raise _Ends(_HELP, f'error: "{path}" is not a regular file\n{_usage(verb)}')
        if not files.on_lustre(path):
            raise _Ends(errno.ENOTTY, f"Cannot read FID of {path}: {os.strerror(errno.ENOTTY)}\n")
        found.append((path, status))
    if len(found) > _BATCH:
        raise _refused(paths[0], errno.E2BIG)
    action = _REQUESTS[verb]
    if action != "RESTORE" and not os.environ.get(PRIVILEGE):
        raise _refused(paths[0], errno.EPERM)
    faults = files.faults()
    queued = False
    try:
        with files.lock():
            if files.take_eagain():
                raise _refused(paths[0], errno.EAGAIN)
            for path, status in found:
                record = files.get(os.path.realpath(path), status)
                if faults.hits("forget", record.path):
                    continue
                if _admit(files, record, action, archive_id):
                    files.enqueue(record, action, faults.number("delay_s", 1.0))
                    queued = True
    finally:
        if queued:  # what came before a refused file stays queued
            kick(files)
    return 0


def _admit(files: Files, record: Record, action: str, archive_id: int) -> bool:
    """Whether the request must be queued; does at once what is synchronous."""
    mask = record.mask
    if action == "CANCEL":
        record.action = ""
        files.put(record)
        return False
    if action == "ARCHIVE":
        if mask & NOARCHIVE or (archive_id and record.archive_id and archive_id != record.archive_id):
            raise _refused(record.path, errno.EPERM)
        record.archive_id = archive_id or record.archive_id
        return not _current(record) and record.action != "ARCHIVE"
    if action == "RESTORE":
        if mask & DIRTY or mask & LOST:
            raise _refused(record.path, errno.EPERM)
        return mask & RELEASED != 0 and not record.action
    if action == "RELEASE":
        if not _current(record) or mask & NORELEASE:
            raise _refused(record.path, errno.EPERM)
        record.mask |= RELEASED
        files.put(record)
        return False
    if not mask & EXISTS or mask & RELEASED:
        raise _refused(record.path, errno.EPERM)
    return not record.action


def _request_options(verb: str, argv: list[str]) -> tuple[int, list[str]]:
    import getopt

    try:
        options, paths = getopt.gnu_getopt(
            argv, "a:l:D:m:", ["archive=", "archive-id=", "filelist=", "data=", "mntpath="]
        )
    except getopt.GetoptError as problem:
        raise _Ends(_HELP, f"lfs {verb}: {problem}\n{_usage(verb)}") from None
    archive_id = 0
    for name, value in options:
        if name in ("-a", "--archive", "--archive-id"):
            if verb not in ("hsm_archive", "hsm_remove") or not value.isdigit():
                raise _Ends(_HELP, f"error: -a is not supported for {verb}, or {value} is no number\n{_usage(verb)}")
            archive_id = int(value)
        if name in ("-l", "--filelist"):
            with Path(value).open("rb") as listed:
                paths = paths + [os.fsdecode(line.rstrip(b"\n")) for line in listed]
    if not paths:
        raise _Ends(_HELP, _usage(verb))
    return archive_id, paths


def _flag(files: Files, verb: str, argv: list[str]) -> int:
    import getopt

    try:
        options, paths = getopt.gnu_getopt(argv, "i:", [*_FLAGS, "archive-id="])
    except getopt.GetoptError as problem:
        raise _Ends(_HELP, f"lfs {verb}: {problem}\n{_usage(verb)}") from None
    bits = 0
    archive_id = 0
    for name, value in options:
        if name in ("-i", "--archive-id"):
            archive_id = int(value)
        else:
            bits |= _FLAGS[name[2:]]
    if not paths or not (bits or archive_id):
        raise _Ends(_HELP, _usage(verb))
    for path in paths:
        try:
            found = Path(path).stat()
            if not files.on_lustre(path):
                raise OSError(errno.ENOTTY, "")
        except OSError as problem:
            code = problem.errno or 1
            raise _Ends(code, f"Can't change hsm flags for {path}: {os.strerror(code)}\n") from None
        if bits & ~(NORELEASE | NOARCHIVE | DIRTY) and not os.environ.get(PRIVILEGE):
            raise _Ends(errno.EPERM, f"Can't change hsm flags for {path}: {os.strerror(errno.EPERM)}\n")
        with files.lock():
            record = files.get(os.path.realpath(path), found)
            record.mask = record.mask | bits if verb == "hsm_set" else record.mask & ~bits
            record.archive_id = archive_id or record.archive_id
            if bits & ARCHIVED and verb == "hsm_set":
                record.size, record.mtime_ns = found.st_size, found.st_mtime_ns
            files.put(record)
    return 0


def _refused(path: str, code: int) -> _Ends:
    return _Ends(code, f"Cannot send HSM request (use of {path}): {os.strerror(code)}\n")


def _usage(verb: str) -> str:
    if verb in ("hsm_set", "hsm_clear"):
        flags = " ".join(f"[--{name}]" for name in _FLAGS)
        return f"usage: {verb} {flags} [-i|--archive-id NUM] FILE...\n"
    if verb in _REQUESTS:
        archive = "[-a|--archive ID] " if verb in ("hsm_archive", "hsm_remove") else ""
        return f"usage: {verb} [-m|--mntpath PATH] [-l|--filelist FILE] [-D|--data DATA] {archive}FILE...\n"
    return f"usage: {verb} FILE...\n"


def _say(fd: int, text: str) -> None:
    data = os.fsencode(text)
    while data:
        data = data[os.write(fd, data) :]
