"""Accounting for the sandbox's Slurm: a MariaDB and a slurmdbd as the current user, in a folder of their own.

A ParallelCluster has none unless its template says so, so that the sandbox starts without; tests start both kinds.
The database listens on a Unix socket alone, in a folder that is nobody else's. Making it takes about 5 s.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sandbox.process import Process, accepts, free_ports

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb-admin", "sacct", "sacctmgr")


@dataclass(frozen=True)
class Accounting:
    """``processes`` are to be started in order, after munged and before slurmctld; ``lines`` go into slurm.conf."""

    lines: str
    processes: tuple[Process, ...]


def missing() -> list[str]:
    """Programs that accounting needs and this machine lacks; empty when it can run here."""
    return [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]


def prepare(folder: Path) -> Accounting:
    """Make a database below ``folder``, and write slurmdbd's configuration there.

    ``folder`` is the one that :func:`sandbox.slurm.prepare` is given: slurmdbd finds its file beside slurm.conf.

    Raises:
        FileNotFoundError: a program is missing; names each.
    """
    if lacking := missing():
        raise FileNotFoundError(f"{', '.join(lacking)} not found (Debian packages slurmdbd and mariadb-server)")
    folder = folder.absolute()
    database = folder / "db"
    database.mkdir(parents=True, mode=0o700)
    (folder / "log").mkdir(exist_ok=True)
    user = pwd.getpwuid(os.geteuid()).pw_name
    socket = database / "s"
    env = {"PATH": _PATH, "HOME": os.environ.get("HOME", "/"), "USER": user, "LC_ALL": "C"}
    install = [
        *("mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"),
        *("--skip-name-resolve", f"--datadir={database}/data", f"--user={user}"),
    ]
    subprocess.run(install, env=env, capture_output=True, timeout=60, check=True)

    def answers() -> bool:
        ping = ["mariadb-admin", "--no-defaults", f"--socket={socket}", "ping"]
        return subprocess.run(ping, env=env, capture_output=True, timeout=10, check=False).returncode == 0

    (port,) = free_ports(1)
    conf = folder / "slurmdbd.conf"
    conf.write_text(
        f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge/s
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CommitDelay=0
"""
    )
    conf.chmod(0o600)
    mariadbd = Process(
        name="mariadbd",
        argv=(
            shutil.which("mariadbd", path=_PATH) or "mariadbd",
            "--no-defaults",
            f"--user={user}",
            f"--datadir={database}/data",
            f"--socket={socket}",
            f"--pid-file={database}/pid",
            "--skip-networking",
            "--innodb-buffer-pool-size=32M",
            "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=0",
        ),
        env=env,
        log=folder / "log" / "mariadbd.out",
        ready=answers,
        ready_within=30.0,
    )
    slurmdbd = Process(
        name="slurmdbd",
        argv=(shutil.which("slurmdbd", path=_PATH) or "slurmdbd", "-D"),
        # libmariadb takes its socket from here; slurmdbd has no setting for it
        env={**env, "MYSQL_UNIX_PORT": str(socket), "SLURM_CONF": str(folder / "slurm.conf")},
        log=folder / "log" / "slurmdbd.out",
        ready=lambda: accepts(port) and _registered(folder, env),
        ready_within=30.0,
    )
    lines = (
        "AccountingStorageType=accounting_storage/slurmdbd\n"
        f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={port}\n"
        f"AccountingStoragePass={folder}/munge/s\n"  # with munge, this is the socket to ask
    )
    return Accounting(lines, (mariadbd, slurmdbd))


def _registered(folder: Path, env: dict[str, str]) -> bool:
    """Have the cluster known to the database; jobs of an unknown one are not kept."""
    command = ["sacctmgr", "--immediate", "add", "cluster", "sandbox"]
    whole = {**env, "SLURM_CONF": str(folder / "slurm.conf")}
    done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode == 0 or "already exists" in done.stdout + done.stderr
