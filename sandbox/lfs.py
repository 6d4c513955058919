"""Installs the doubles of ``lfs`` and ``sudo`` on the sandbox's shared disk.

Two folders of commands tell the two identities apart: ``bin-sim`` for the cluster's ordinary user, whose
``sudo`` refuses, and ``bin-admin`` for the administrator, whose ``sudo`` gives the privilege that HSM requests
need. What ``lfs`` itself does is in :mod:`sandbox.lustre`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sandbox.lustre.program import PRIVILEGE

_REPOSITORY = Path(__file__).resolve().parent.parent

_LFS = """\
#!/bin/sh
exec {python} -I -S -c 'import sys
sys.path.insert(0, sys.argv[1])
from sandbox.lustre.program import main
sys.exit(main(sys.argv[2], sys.argv[3:]))' {repository} {folder} "$@"
"""

_SUDO_ADMIN = """\
#!/bin/sh
while :; do
  case "$1" in
    -n|-E|-H|-S) shift ;;
    -u|-g) shift 2 ;;
    --) shift; break ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || {{ echo 'usage: sudo [-n] [-u user] command [arg ...]' >&2; exit 1; }}
{privilege}=1
export {privilege}
exec "$@"
"""

_SUDO_SIM = """\
#!/bin/sh
echo 'sim is not in the sudoers file.' >&2
exit 1
"""


class LustreFaults(BaseModel):
    """The knobs, kept in ``<shared disk>/.lfs/faults.json``. Lists hold globs on absolute, real paths."""

    model_config = ConfigDict(extra="forbid")

    delay_s: float = Field(1.0, ge=0, description="Seconds from a request to its end.")
    eagain: int = Field(0, ge=0, description="Refuse so many of the next requests with EAGAIN (coordinator stopped).")
    newer: bool = Field(False, description="Speak as Lustre 2.17 does, and go on after a file that fails.")
    auto_export: bool = Field(
        False, description="Archive new and changed files without being asked, once hsm_state has seen them."
    )
    fail: list[str] = Field([], description="These requests end without success: NOOP, and not archived.")
    forget: list[str] = Field([], description="These requests are accepted and never begun.")
    never_finish: list[str] = Field([], description="These requests never end.")
    skip_upload: list[str] = Field([], description="Archived according to the mask, but no object is written.")
    truncate: list[str] = Field([], description="The object lacks the last byte.")
    corrupt: list[str] = Field([], description="The object has the right size and other bytes.")


def state_folder(shared_disk: Path) -> Path:
    """Where the double keeps its state."""
    return shared_disk / ".lfs"


def install(shared_disk: Path, lustre_root: Path, s3_endpoint: str, bucket: str, prefix: str = "") -> None:
    """Write the commands into ``bin-sim`` and ``bin-admin``, and the configuration they read; idempotent.

    ``lustre_root`` is the folder that plays the Lustre file system, made if absent; a file ``a/b`` below it is
    archived as ``s3://bucket/prefix/a/b`` by plain HTTP at ``s3_endpoint``. Masks and knobs of an earlier
    installation stay as they are.
    """
    folder = state_folder(shared_disk).absolute()
    for each in (folder / "files", folder / "queue", lustre_root):
        each.mkdir(parents=True, exist_ok=True)
    config = {
        "root": str(lustre_root.resolve()),
        "endpoint": s3_endpoint,
        "bucket": bucket,
        "prefix": prefix.strip("/"),
    }
    (folder / "config.json").write_text(_json(config))
    lfs = _LFS.format(
        # not the virtual environment's name for it: resolving that costs a third of the start-up
        python=shlex.quote(str(Path(sys.executable).resolve())),
        repository=shlex.quote(str(_REPOSITORY)),
        folder=shlex.quote(str(folder)),
    )
    for name, sudo in (("bin-sim", _SUDO_SIM), ("bin-admin", _SUDO_ADMIN.format(privilege=PRIVILEGE))):
        commands = shared_disk / name
        commands.mkdir(parents=True, exist_ok=True)
        for command, text in (("lfs", lfs), ("sudo", sudo)):
            (commands / command).write_text(text)
            (commands / command).chmod(0o755)


def set_faults(shared_disk: Path, faults: LustreFaults) -> None:
    """Turn the knobs, for every later command and request."""
    path = state_folder(shared_disk) / "faults.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(faults.model_dump_json())
    temporary.rename(path)


def stop(shared_disk: Path, *, within: float = 5.0) -> None:
    """End the background copying, if any is under way; requests that it leaves go on with the next command.

    Raises:
        TimeoutError: it did not end within so many seconds.
    """
    path = state_folder(shared_disk) / "copytool.pid"
    if not path.exists():
        return
    deadline = time.monotonic() + within
    with path.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:  # the lock says that the writer of the number lives
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the copying process of {path} does not end") from None
                file.seek(0)
                if number := file.read().strip():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(number), signal.SIGTERM)
                time.sleep(0.02)


def _json(values: dict[str, str]) -> str:
    import json

    return json.dumps(values)
