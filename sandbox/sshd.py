"""A real sshd on loopback that plays the head node's: two logins of one user, told apart by their keys.

ParallelCluster's head node knows ``sim`` (no sudo) and ``ec2-user`` (sudo). Here both keys log in as the user who
runs the sandbox, because sshd without root can do no other; ``environment=`` in ``authorized_keys`` gives each key
its own HOME, whose ``.bash_profile`` makes the difference. As on a ParallelCluster head node, a shell that is no
login shell finds no Slurm: its PATH is a folder of links to the system's programs without Slurm's.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sandbox.process import Process

_SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_SLURM_PREFIXES = (
    *("sacct", "salloc", "sattach", "sbatch", "sbcast", "scancel", "scontrol", "scrontab", "sdiag"),
    *("sinfo", "slurm", "sprio", "squeue", "sreport", "srun", "sshare", "sstat", "strigger"),
)


@dataclass(frozen=True)
class Sshd:
    """A prepared head node: where it will listen, who may log in with which key, and how to start it."""

    port: int
    user: str
    sim_key: Path
    admin_key: Path
    host_key: Path
    """Public host key, one line as in ``known_hosts`` without the host."""
    log: Path
    """sshd's own log (``LogLevel VERBOSE``): one ``Accepted publickey`` line for each connection."""
    process: Process


def available() -> str | None:
    """Where sshd is; ``None`` if this machine has none. sshd starts only by its absolute path."""
    return shutil.which("sshd", path=os.pathsep.join(_SYSTEM_PATH))


def prepare(folder: Path, *, port: int, sim_home: Path, admin_home: Path) -> Sshd:
    """Write keys and configuration below ``folder``; keys that are there already stay.

    ``sim_home`` and ``admin_home`` are the HOME that each key's sessions see; see :func:`write_profile`.

    Raises:
        FileNotFoundError: there is no sshd on this machine.
    """
    program = available()
    if program is None:
        raise FileNotFoundError("sshd is not installed (Debian package openssh-server)")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    bare = _bare_path(folder / "bin")
    host_key = folder / "ssh_host_ed25519_key"
    _host_key(host_key)
    lines = []
    for name, home in (("sim", sim_home), ("admin", admin_home)):
        public = _login_key(folder / f"{name}.pem")
        options = f'environment="HOME={home}",environment="PATH={bare}"'
        lines.append(f"{options},no-agent-forwarding,no-X11-forwarding {public} {name}\n")
    authorized = folder / "authorized_keys"
    _private(authorized, "".join(lines))
    log = folder / "sshd.log"
    config = folder / "sshd_config"
    _private(
        config,
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {host_key}
PidFile {folder / "sshd.pid"}
AuthorizedKeysFile {authorized}
AuthenticationMethods publickey
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserEnvironment HOME,PATH
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
MaxSessions 10
MaxStartups 10:30:100
LogLevel VERBOSE
Subsystem sftp internal-sftp
""",
    )
    if os.geteuid() == 0:  # privilege separation wants this empty folder; Debian's unit makes it at boot
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = Process(
        name="sshd",
        argv=(program, "-D", "-f", str(config), "-E", str(log)),
        env={"PATH": os.pathsep.join(_SYSTEM_PATH)},
        log=folder / "sshd.out",
        ready=lambda: _listens(port),
        ready_within=15.0,
    )
    return Sshd(
        port=port,
        user=pwd.getpwuid(os.geteuid()).pw_name,
        sim_key=folder / "sim.pem",
        admin_key=folder / "admin.pem",
        host_key=host_key.with_suffix(".pub"),
        log=log,
        process=process,
    )


def connections(listener: int) -> list[int]:
    """Process ids that serve the open connections of the sshd with process id ``listener``.

    Each is a session of its own, which outlives the listener: ending it cuts the connection.
    """
    children = Path(f"/proc/{listener}/task/{listener}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []


def cut(listener: int, *, within: float = 10.0) -> None:
    """Kill what serves the open connections, as a rebooting head node would, and wait until it is gone.

    Also to be called before the listener is stopped: its children outlive it, and write to its log.
    """
    deadline = time.monotonic() + within
    killed: set[int] = set()
    while (serving := connections(listener)) and time.monotonic() < deadline:
        for pid in set(serving) - killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)


def write_profile(home: Path, *, first_on_path: Path, env: Mapping[str, str]) -> None:
    """Make ``home`` with a ``.bash_profile`` for login shells: PATH with ``first_on_path`` leading, and ``env``."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join((str(first_on_path), *_SYSTEM_PATH))
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in {"PATH": path, **env}.items()]
    (home / ".bash_profile").write_text("".join(lines) + 'cd "$HOME"\n')


def _bare_path(folder: Path) -> Path:
    """A folder of links to every system program but Slurm's: what an exec without login shell finds."""
    folder.mkdir(exist_ok=True)
    for place in _SYSTEM_PATH[:3]:
        for program in os.scandir(place) if Path(place).is_dir() else ():
            if not program.name.startswith(_SLURM_PREFIXES):
                with contextlib.suppress(FileExistsError):
                    (folder / program.name).symlink_to(program.path)
    return folder


def _listens(port: int) -> bool:
    """Whether somebody listens on a loopback port; a connection just to see would leave its mark in sshd's log."""
    wanted = f"0100007F:{port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[1] == wanted and row[3] == "0A" for row in rows)


def _host_key(path: Path) -> None:
    if path.exists():
        return
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path.with_suffix(".pub").write_text(public + "\n")
    _private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode())


def _login_key(path: Path) -> str:
    """An RSA key pair in the form that EC2's CreateKeyPair answers; returns the public half as OpenSSH writes it."""
    public = path.with_suffix(".pub")
    if not path.exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public.write_text(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + "\n")
        _private(path, key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode())
    return public.read_text().strip()


def _private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
