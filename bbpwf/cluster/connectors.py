"""How each kind of cluster is obtained: made by the provisioner, reached by SSH, or simply this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.cluster.local_backend import LocalBackend
from bbpwf.cluster.runtime import Connected, Progress
from bbpwf.errors import ClusterFailed, InvalidConfig
from bbpwf.settings import ClusterSettings
from bbpwf.transport.local import LocalTransport
from bbpwf.transport.protocol import Transport

if TYPE_CHECKING:  # paramiko and boto3 take a third of a second to import: only clusters that need them pay it
    from bbpwf.platform.provisioning import Progress as Look
    from bbpwf.platform.provisioning import Provisioning
    from bbpwf.platform.secrets import SecretsManager
    from bbpwf.transport.ssh import SshTransport


class LocalConnector:
    """This machine: nothing to wait for."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings

    def connect(self, progress: Progress, stopping: threading.Event) -> Connected:
        """Answer at once."""
        del progress, stopping
        transport = LocalTransport(command_timeout=self._settings.command_timeout_s)
        return Connected(LocalBackend(transport, slots=self._settings.max_local_jobs), "local", lustre=False)


class SshConnector:
    """A fixed head node and a key file."""

    def __init__(self, settings: ClusterSettings, clock: Clock, *, known_hosts: Path) -> None:
        if not settings.host or not settings.user or settings.key_file is None:
            raise InvalidConfig(
                "a cluster of kind `ssh` needs a host, a user and a key file",
                hint="Set BBPWF_CLUSTER__HOST, BBPWF_CLUSTER__USER and BBPWF_CLUSTER__KEY_FILE.",
            )
        self._settings = settings
        self._clock = clock
        self._known_hosts = known_hosts

    def connect(self, progress: Progress, stopping: threading.Event) -> Connected:
        """Log in and look around."""
        del stopping
        settings = self._settings
        progress("connecting", f"logging in to {settings.host}")
        try:
            key = SecretStr(settings.key_file.read_text() if settings.key_file else "")
        except OSError as error:
            raise InvalidConfig(f"the key file {settings.key_file} cannot be read: {error.strerror}") from error
        transport = open_ssh(settings, self._clock, self._known_hosts, settings.host, settings.user, key)
        return _slurm(transport, settings)


class ProvisionedConnector:
    """The project's ParallelCluster: asked for, waited for, and reached with the key from Secrets Manager."""

    def __init__(
        self,
        settings: ClusterSettings,
        provisioning: Callable[[], Provisioning],
        secrets: SecretsManager,
        clock: Clock,
        *,
        tier: str,
        known_hosts: Path,
    ) -> None:
        self._settings = settings
        self._provisioning = provisioning
        self._secrets = secrets
        self._clock = clock
        self._tier = tier
        self._known_hosts = known_hosts

    def connect(self, progress: Progress, stopping: threading.Event) -> Connected:
        """Bring the cluster to life if need be, and log in as its ordinary user."""

        def look(seen: Look) -> None:
            progress(seen.phase.value, seen.message)

        access = self._provisioning().wait_until_ready(look, stopping.is_set)
        if access is None:
            raise ClusterFailed("the agent was stopped while it waited for the cluster")
        address = self._settings.host or access.address
        progress("connecting", f"logging in to {address}")
        login, admin = access.keys.login, access.keys.admin
        key = self._secrets.get(login.secret_id)
        transport = open_ssh(self._settings, self._clock, self._known_hosts, address, login.user, key)
        connected = _slurm(transport, self._settings, tier=self._tier)

        def privileged() -> AbstractContextManager[Transport]:
            secret = self._secrets.get(admin.secret_id)
            return closing(open_ssh(self._settings, self._clock, self._known_hosts, address, admin.user, secret))

        connected.privileged = privileged
        return connected


def open_ssh(
    settings: ClusterSettings, clock: Clock, known_hosts: Path, host: str, user: str, key: SecretStr
) -> SshTransport:
    """A transport to a head node; the first call connects."""
    from bbpwf.transport.hostkeys import HostKeyPins
    from bbpwf.transport.ssh import SshTransport
    from bbpwf.transport.ssh_connection import Login

    login = Login(host, settings.port, user, connect_timeout=settings.connect_timeout_s, keepalive=settings.keepalive_s)
    return SshTransport(login, key, HostKeyPins(known_hosts), clock=clock, command_timeout=settings.command_timeout_s)


_HAS_HSM = """
mkdir -p "$1/.bbpwf" && f=$1/.bbpwf/probe && : >"$f" && command -v lfs >/dev/null && lfs hsm_state "$f" >/dev/null 2>&1
"""


def _slurm(transport: SshTransport, settings: ClusterSettings, *, tier: str = "") -> Connected:
    from bbpwf.cluster.slurm_backend import SlurmBackend

    backend = SlurmBackend(transport, default_partition=settings.partition)
    backend.look_around()
    lustre = settings.lustre
    if lustre is None:
        lustre = transport.run(["bash", "-c", _HAS_HSM, "lustre", settings.data_root]).exit_code == 0
    return Connected(backend, transport.where, lustre=lustre, tier=tier)
