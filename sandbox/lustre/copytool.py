"""The archive's side: a short-lived background process that carries out the requests that are queued.

It ends when nothing is left to do, and any later ``lfs`` command that sees an unfinished request starts it
again, so it does not matter who killed it.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

from sandbox.lustre.files import ARCHIVED, DIRTY, EXISTS, LOST, RELEASED, Faults, Files, Record

_PAUSE = 0.05
_TIMEOUT = 30.0

# moto asks no valid signature, only whose request it is: without any, its later readers would be refused.
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=lustre/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


def kick(files: Files) -> None:
    """Make sure that somebody works on the queue; returns at once."""
    held = _hold(files)
    if held is None:
        return
    os.close(held)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        null = os.open("/dev/null", os.O_RDWR)
        log = os.open(_log(files), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for ours, standard in ((null, 0), (log, 1), (log, 2)):  # a caller's pipe must not stay open
            os.dup2(ours, standard)
        os.closerange(3, 256)
        os.chdir("/")
        work(files)
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        os._exit(0)


def work(files: Files) -> None:
    """Carry out the queue until it is empty; does nothing if another process is at it."""
    held = _hold(files)
    if held is None:
        return
    os.ftruncate(held, 0)
    os.pwrite(held, str(os.getpid()).encode(), 0)
    while files.folder.is_dir():
        faults = files.faults()
        with files.lock():
            todo = [each for each in files.queued() if not faults.hits("never_finish", each.path)]
            for each in todo:
                if not each.running:
                    each.running = True
                    if each.action == "ARCHIVE":
                        each.mask |= EXISTS
                        each.archive_id = each.archive_id or 1
                    files.put(each)
        if not todo:
            break
        due = [each for each in todo if each.due <= time.time()]
        for each in due:
            _carry_out(files, faults, each)
        if not due:
            time.sleep(_PAUSE)
    os.close(held)


def _log(files: Files) -> Path:
    return files.folder / "copytool.log"


def _hold(files: Files) -> int | None:
    fd = os.open(files.folder / "copytool.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _carry_out(files: Files, faults: Faults, wanted: Record) -> None:
    path = wanted.path
    error = "the fault knob says so" if faults.hits("fail", path) else ""
    before = after = None
    if not error:
        try:
            before = Path(path).stat()
            if wanted.action == "ARCHIVE" and not faults.hits("skip_upload", path):
                _upload(files, faults, path)
            elif wanted.action == "REMOVE":
                _send(files, "DELETE", path, b"")
            after = Path(path).stat()
        except OSError as problem:
            error = str(problem)
    with files.lock():
        record = files.load(wanted.inode)
        if record is None or record.action != wanted.action:
            return  # cancelled meanwhile
        record.action = ""
        if not error and before is not None and after is not None:
            _finish(record, wanted.action, before, after)
        files.put(record)
    with _log(files).open("a") as log:
        log.write(f"{time.time():.3f} {wanted.action} {path!r}: {error or 'done'}\n")


def _finish(record: Record, action: str, before: os.stat_result, after: os.stat_result) -> None:
    if action == "RESTORE":
        record.mask &= ~RELEASED
    elif action == "REMOVE":
        record.mask &= ~(EXISTS | ARCHIVED | DIRTY | LOST)
        record.archive_id = 0
    else:
        record.size, record.mtime_ns = before.st_size, before.st_mtime_ns
        if record.copied(after):
            record.mask = (record.mask | EXISTS | ARCHIVED) & ~(DIRTY | LOST)
        else:  # written to while it was being copied
            record.mask |= EXISTS | DIRTY


def _upload(files: Files, faults: Faults, path: str) -> None:
    with Path(path).open("rb") as file:
        if faults.hits("truncate", path):
            _send(files, "PUT", path, file.read()[:-1])
        elif faults.hits("corrupt", path):
            _send(files, "PUT", path, bytes(byte ^ 1 for byte in file.read()))
        else:
            _send(files, "PUT", path, file)


def _send(files: Files, method: str, path: str, body: object) -> None:
    import http.client  # slow to import, and needed in the background alone
    from urllib.parse import quote, urlsplit

    at = urlsplit(files.endpoint)
    found = Path(path).stat()
    size = len(body) if isinstance(body, bytes) else found.st_size
    headers = _SIGNED | {
        "Content-Length": str(size),
        # POSIX metadata travels as user metadata, as FSx writes it
        "x-amz-meta-file-permissions": f"0{found.st_mode:o}",
        "x-amz-meta-file-owner": str(found.st_uid),
        "x-amz-meta-file-group": str(found.st_gid),
        "x-amz-meta-file-mtime": f"{found.st_mtime_ns}ns",
    }
    connection = http.client.HTTPConnection(at.hostname or "127.0.0.1", at.port, timeout=_TIMEOUT)
    try:
        target = f"/{quote(files.bucket)}/{quote(files.key(path))}"
        connection.request(method, target, body=body, headers=headers)  # type: ignore[arg-type]  # bytes or a file
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise OSError(f"S3 answered {answer.status} to {method} {target}")
    except http.client.HTTPException as problem:
        raise OSError(f"S3 broke off: {problem!r}") from problem
    finally:
        connection.close()
