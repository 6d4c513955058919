"""Instances as containers of a Docker daemon on this machine.

A project has at most one container, because its name is made from the project, and one volume, which outlives every
container: ledger, runs and pinned host keys are in it. Docker restarts nothing by itself; the gateway does, as it does
on ECS, so that an instance that went to rest stays so.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.types import Mount

from bbpwf.errors import InstanceFailed, InvalidConfig
from bbpwf.redact import Redactor
from bbpwf.settings import GatewaySettings
from service.gateway.authorizer import Project
from service.gateway.backend import AS_IT_SHOULD, Found, Order, Phase, Sighting

_log = logging.getLogger(__name__)

PORT = 8100
STATE = "/var/lib/bbpwf"
CONFIG = "/etc/bbpwf/instance.toml"
CAPABILITIES = ("CHOWN", "KILL", "SETGID", "SETUID")
"""What the image's first process needs of root: to hand over the state folder, and to give heads uids of their own."""
_LABEL = "org.bbpwf"
_STOP_S = 30
_PROBE_S = 2.0
_CALL_S = 60


class DockerBackend:
    """See :class:`service.gateway.backend.Backend`.

    Args:
        settings: image, limits, network, mounts.
        environment: for every instance; the project's own is added.
        redactor: masks the last words of a container that ended badly.

    Raises:
        InvalidConfig: a mount is not ``source:target``.
        InstanceFailed: the daemon does not answer.
    """

    def __init__(self, settings: GatewaySettings, environment: Mapping[str, str], *, redactor: Redactor) -> None:
        self._settings = settings
        self._environment = dict(environment)
        self._redactor = redactor
        self._mounts = [_mount(each) for each in settings.mounts]
        if settings.instance_config is not None:
            self._mounts.append(_mount(f"{settings.instance_config.expanduser().absolute()}:{CONFIG}"))
            self._environment["BBPWF_CONFIG_FILE"] = CONFIG
        try:
            self._client = docker.DockerClient(base_url=settings.docker_url, timeout=_CALL_S)
            self._network()
        except (DockerException, requests.RequestException) as error:
            raise self._failed("the Docker daemon does not answer", error) from error

    def close(self) -> None:
        """Close its connections; containers go on."""
        self._client.close()

    def start(self, order: Order) -> str:
        """Start a container, or find that of the same generation."""
        name = f"bbpwf-{order.project.name}"
        try:
            for _ in range(3):
                before = self._named(name)
                if before is not None:
                    if before.labels.get(f"{_LABEL}.generation") == str(order.generation):
                        if before.status == "created":  # whoever made it died before starting it
                            before.start()
                        return str(before.id)
                    self._bury(before)
                try:
                    made = self._client.containers.create(self._settings.image, **self._options(name, order))
                except APIError as error:
                    if error.status_code == http.client.CONFLICT:
                        continue
                    raise
                made.start()
                return str(made.id)
        except (DockerException, requests.RequestException) as error:
            raise self._failed("the instance could not be started", error) from error
        raise InstanceFailed(f"others make and remove the container {name} all the time")

    def look(self, instance: str) -> Sighting:
        """How a container is: what Docker says, and whether the service in it answers."""
        try:
            container = self._client.containers.get(instance)
        except NotFound:
            return Sighting(Phase.GONE, reason="its container was removed")
        except (DockerException, requests.RequestException) as error:
            raise self._failed("the instance cannot be seen", error) from error
        state: Mapping[str, Any] = container.attrs["State"]
        if state["Status"] in {"created", "restarting"}:
            return Sighting(Phase.STARTING, reason="its container is made")
        if not state["Running"]:
            return self._ended(state)
        if state["Paused"]:
            return Sighting(Phase.STARTING, reason="its container is paused")
        if state.get("Health", {}).get("Status") == "unhealthy":
            return Sighting(Phase.SICK, reason="its service does not answer")
        networks: Mapping[str, Any] = container.attrs["NetworkSettings"]["Networks"]
        address = next((str(each["IPAddress"]) for each in networks.values() if each["IPAddress"]), "")
        if address and _healthy(address):
            return Sighting(Phase.READY, address=f"{address}:{PORT}")
        return Sighting(Phase.STARTING, reason="its service comes up")

    def stop(self, instance: str, reason: str) -> None:
        """SIGTERM, and SIGKILL 30 s later."""
        _log.info("stopping instance %s: %s", instance[:12], reason)
        try:
            self._client.containers.get(instance).stop(timeout=_STOP_S)
        except NotFound:
            return
        except (DockerException, requests.RequestException) as error:
            raise self._failed("the instance cannot be stopped", error) from error

    def all(self) -> Sequence[Found]:
        """Containers with our label that run."""
        try:
            listed = self._client.containers.list(filters={"label": f"{_LABEL}.generation"}, ignore_removed=True)
        except (DockerException, requests.RequestException) as error:
            raise self._failed("the instances cannot be seen", error) from error
        return [
            Found(
                str(each.id),
                Project(each.labels[f"{_LABEL}.virtual-lab"], each.labels[f"{_LABEL}.project"]),
                int(each.labels[f"{_LABEL}.generation"]),
            )
            for each in listed
        ]

    def _options(self, name: str, order: Order) -> dict[str, Any]:
        settings, project = self._settings, order.project
        return {
            "name": name,
            "network": settings.network,
            "environment": {
                **self._environment,
                "BBPWF_PROJECT__VIRTUAL_LAB_ID": project.virtual_lab_id,
                "BBPWF_PROJECT__PROJECT_ID": project.project_id,
                "BBPWF_STATE_DIR": STATE,
                "BBPWF_SERVICE__HOST": "0.0.0.0",  # noqa: S104  of its own network namespace
                "BBPWF_SERVICE__PORT": str(PORT),
            },
            "labels": {
                f"{_LABEL}.virtual-lab": project.virtual_lab_id,
                f"{_LABEL}.project": project.project_id,
                f"{_LABEL}.user": order.sub,
                f"{_LABEL}.cost": settings.cost_tag,
                f"{_LABEL}.generation": str(order.generation),
            },
            "mounts": [Mount(STATE, name, type="volume"), *self._mounts],
            "read_only": True,
            "tmpfs": {"/tmp": "rw,nosuid,nodev,noexec,size=256m,mode=1777"},  # noqa: S108  the container's own
            "cap_drop": ["ALL"],
            "cap_add": list(CAPABILITIES),
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": f"{settings.memory_mb}m",
            "memswap_limit": f"{settings.memory_mb}m",
            "nano_cpus": int(settings.cpus * 1e9),
            "pids_limit": settings.max_processes,
            "log_config": {"type": "json-file", "config": {"max-size": "10m", "max-file": "3"}},
        }

    def _named(self, name: str) -> docker.models.containers.Container | None:
        try:
            return self._client.containers.get(name)
        except NotFound:
            return None

    def _bury(self, container: docker.models.containers.Container) -> None:
        """Remove an earlier container of the project; its last words go to our log, its volume stays."""
        if container.attrs["State"].get("ExitCode"):
            words = container.logs(tail=20).decode(errors="replace")
            _log.warning("the last words of %s:\n%s", container.name, self._redactor.mask(words[-4000:]))
        with contextlib.suppress(NotFound):
            container.remove(force=True)

    def _network(self) -> None:
        if not self._client.networks.list(names=[self._settings.network]):
            # instances have nothing to say to each other
            options = {"com.docker.network.bridge.enable_icc": "false"}
            self._client.networks.create(
                self._settings.network, driver="bridge", options=options, check_duplicate=True, labels={_LABEL: ""}
            )

    def _failed(self, what: str, error: Exception) -> InstanceFailed:
        said = error.explanation if isinstance(error, APIError) else type(error).__name__
        return InstanceFailed(f"{what}: {self._redactor.mask(str(said))[:300]}", where=self._settings.docker_url)

    @staticmethod
    def _ended(state: Mapping[str, Any]) -> Sighting:
        code = int(state["ExitCode"])
        if code in AS_IT_SHOULD:
            return Sighting(Phase.RESTING, reason="it ended in good order")
        reason = "it ran out of memory" if state.get("OOMKilled") else f"it ended with code {code}"
        return Sighting(Phase.GONE, reason=f"{reason}: {state['Error']}" if state.get("Error") else reason)


def _healthy(address: str) -> bool:
    connection = http.client.HTTPConnection(address, PORT, timeout=_PROBE_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status < http.client.MULTIPLE_CHOICES
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _mount(text: str) -> Mount:
    source, _, target = text.partition(":")
    if not source.startswith("/") or not target.startswith("/"):
        raise InvalidConfig(f"the mount {text!r} is not '/source:/target'", hint="See BBPWF_GATEWAY__MOUNTS.")
    return Mount(target, source, type="bind", read_only=True)
