"""The cluster's two logins for a machine that knows neither.

sshd asks the system who ``sim`` and ``ec2-user`` are. Without touching the machine's own tables, Debian's
libnss-wrapper answers it from files: both are the user who runs the sandbox, by other names and with homes on the
shared disk. Only sshd sees these names; commands of a session find the system's own users.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from sandbox.process import Process

_LIBRARY = "libnss_wrapper.so"
_PLACES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


def library() -> str | None:
    """Where libnss-wrapper is; ``None`` if it is not installed."""
    for place in _PLACES:
        if (path := Path(place) / _LIBRARY).exists():
            return str(path)
    return ctypes.util.find_library("nss_wrapper")


def knowing(process: Process, homes: Mapping[str, Path], folder: Path) -> Process:
    """``process`` with the names in ``homes`` added to the users that it knows; tables go to ``folder``.

    Raises:
        FileNotFoundError: libnss-wrapper is not installed.
    """
    found = library()
    if found is None:
        raise FileNotFoundError(f"{_LIBRARY} not found (Debian package libnss-wrapper)")
    folder.mkdir(parents=True, exist_ok=True)
    uid, gid = os.getuid(), os.getgid()
    # the wrapper's files replace the system's, so these come first: sshd needs its own user for separation
    users = Path("/etc/passwd").read_text() + "".join(
        f"{name}:x:{uid}:{gid}:cluster user:{home}:/bin/bash\n" for name, home in homes.items()
    )
    (folder / "passwd").write_text(users)
    (folder / "group").write_text(Path("/etc/group").read_text())
    added = {
        "LD_PRELOAD": found,
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }
    return dataclasses.replace(process, env={**process.env, **added})
