"""Where things are in a sandbox's folder.

::

    sandbox.json    what runs, on which ports; see sandbox.state
    env             variables for clients (``export`` lines); env.service: for a service too, its secrets included
    log/            one file for each part
    state/          the service's own folder: ledger, runs, pinned host keys
    client/         the state folder of ``bbpwf run`` and other clients
    slurm/ ssh/     configuration, keys and state of Slurm and sshd
    oidc/ provisioner/ nexus/ secrets/
    cluster/        the cluster's shared disk: obi/data/scratch (Lustre), home/, software, bin-sim/, bin-admin/
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Layout:
    """Paths below ``root``, the sandbox's folder or a short link to it."""

    root: Path

    @property
    def logs(self) -> Path:
        """One file for each part."""
        return self.root / "log"

    @property
    def service_state(self) -> Path:
        """The service's folder."""
        return self.root / "state"

    @property
    def client_state(self) -> Path:
        """The folder of commands that run without the service."""
        return self.root / "client"

    @property
    def slurm(self) -> Path:
        """Slurm's configuration, keys and state."""
        return self.root / "slurm"

    @property
    def ssh(self) -> Path:
        """sshd's configuration, host key and the two login keys."""
        return self.root / "ssh"

    @property
    def client_secret(self) -> Path:
        """The secret of the service at the issuer."""
        return self.root / "secrets" / "client-secret"

    @property
    def shared_disk(self) -> Path:
        """What all nodes of the cluster see."""
        return self.root / "cluster"

    @property
    def data_root(self) -> Path:
        """The part of the shared disk that is Lustre with an archive behind it."""
        return self.shared_disk / "obi" / "data" / "scratch"

    @property
    def software(self) -> Path:
        """The software environment as jobs see it."""
        return self.shared_disk / "software"

    def home(self, user: str) -> Path:
        """A cluster user's home."""
        return self.shared_disk / "home" / user


def software_environment() -> Path:
    """Where ``make software`` puts the software environment."""
    return REPOSITORY / ".software"


def code_version() -> str:
    """Changes whenever a source file of the service does: one that was started before then runs older code."""
    digest = hashlib.sha256()
    for package in ("bbpwf", "service"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            seen = path.stat()
            digest.update(f"{path} {seen.st_size} {seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()
