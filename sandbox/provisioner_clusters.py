"""The clusters of the provisioner double: how they come, fail and go, by the clock alone.

Facts from ``contracts.md`` §1.3 to §1.6. A cluster's state is computed from when it was asked for, so nothing runs
in the background and a restart of the double changes nothing.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from botocore.exceptions import ClientError
from pydantic import Field

from bbpwf.clock import Clock
from sandbox.double import Knobs, save

REGION = "us-east-1"
VERSION = "3.14.1"
TIERS = frozenset(
    {"debug", "prod-mpi", "mixed-prod-mpi", "prod-mpi-intel", "prod-mpi-mem", "prod-mpi-hpc", "prod-batch"}
)
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]{0,59}\Z")
_ACCOUNT = "123456789012"


class ProvisionerFaults(Knobs):
    """What can be wrong with the provisioner. Knobs about creation are remembered by the cluster that is asked for."""

    throttle_next: int = Field(0, ge=0)
    """So many requests get 429."""
    timeout_next: int = Field(0, ge=0)
    """So many requests get 504 although they took effect."""
    crash_next: int = Field(0, ge=0)
    """So many requests get 502 without effect."""
    describe_error: str = ""
    """Describe answers 500 with this type name, e.g. ``botocore.exceptions.ClientError``."""
    key_fields: Literal["new", "middle", "old"] = "new"
    """Names of the key fields: ``user_*`` and ``admin_*``, before that ``private_*`` and ``admin_user_*``, at first
    ``private_*`` alone, which then was the administrator's."""
    swap_arns: Literal["no", "prefix", "swapped"] = "no"
    """A repeated POST names the wrong secret: first hit of a prefix match, or the two exchanged."""
    plain_text: bool = False
    """Errors and ``/version`` are plain text, as before #68."""
    stage: Literal["", "absent", "creating", "booting", "deleting"] = ""
    """Clusters get no further than this: not to be seen yet, without or with a head node, being deleted."""
    never_appears: bool = False
    """No cluster follows a POST, as with a tier that does not exist."""
    create_fails: str = ""
    """Clusters end in CREATE_FAILED with this failure code."""
    delete_fails: bool = False
    """Deleted clusters end in DELETE_FAILED."""
    head_node_state: Literal["running", "stopped", "terminated"] = "running"
    """What became of the head node of a complete cluster."""
    fleet: Literal["RUNNING", "STOPPED", "PROTECTED", "UNKNOWN"] = "RUNNING"
    """``computeFleetStatus`` of a complete cluster."""


class SecretStore(Protocol):
    """What of boto3's Secrets Manager client is used here."""

    def describe_secret(self, *, SecretId: str) -> dict[str, Any]:  # noqa: N803  AWS's own parameter name
        """A secret's ARN and the like."""
        ...

    def create_secret(self, *, Name: str, SecretString: str) -> dict[str, Any]:  # noqa: N803  AWS's own names
        """Make a secret."""
        ...

    def delete_secret(self, *, SecretId: str, ForceDeleteWithoutRecovery: bool) -> dict[str, Any]:  # noqa: N803  AWS's
        """Remove a secret."""
        ...


@dataclass(frozen=True)
class Timing:
    """Seconds that things take."""

    absent: float
    create: float
    delete: float


@dataclass
class Cluster:
    """A stack that was asked for."""

    name: str
    vlab_id: str
    project_id: str
    lustre: bool
    asked: float
    failure: str = ""
    deleted: float = 0.0
    delete_fails: bool = False


class Clusters:
    """All clusters and their secrets. ``keys`` maps the suffix of a secret's name to the PEM it holds."""

    def __init__(
        self,
        file: Path,
        timing: Timing,
        clock: Clock,
        manager: SecretStore,
        keys: dict[str, str],
        head_node: str,
    ) -> None:
        self._file = file
        self._timing = timing
        self._clock = clock
        self._manager = manager
        self._keys = keys
        self._head_node = head_node
        self._lock = threading.RLock()
        stored = json.loads(file.read_text()) if file.exists() else []
        self._known = {entry["name"]: Cluster(**entry) for entry in stored}

    def ask(self, vlab_id: str, project_id: str, query: dict[str, str], faults: ProvisionerFaults) -> dict[str, Any]:
        """POST: make the secrets if they are absent, and start a cluster unless the name is taken."""
        name = f"pcluster-{vlab_id}-{project_id}"
        with self._lock:
            user, admin, fresh = self._secrets(name)
            if not fresh and faults.swap_arns == "prefix":
                admin = user
            elif not fresh and faults.swap_arns == "swapped":
                user, admin = admin, user
            possible = _NAME.match(name) and query.get("tier", "debug") in TIERS and not faults.never_appears
            if possible and self._find(name, faults) is None:
                lustre = query.get("include_lustre", "true").lower() == "true"
                now = self._clock.now()
                self._known[name] = Cluster(name, vlab_id, project_id, lustre, now, failure=faults.create_fails)
                self._keep()
        answer = {"clusterName": name, "clusterStatus": "CREATE_REQUEST_RECEIVED"}
        if faults.key_fields == "new":
            answer |= {"ssh_user": "sim", "user_private_ssh_key_arn": user, "admin_private_ssh_key_arn": admin}
        elif faults.key_fields == "middle":
            answer |= {"private_ssh_key_arn": user, "admin_user_private_ssh_key_arn": admin}
        else:
            answer |= {"private_ssh_key_arn": admin}
        return answer

    def describe(self, vlab_id: str, project_id: str, faults: ProvisionerFaults) -> dict[str, Any] | None:
        """GET with both ids; ``None`` while nothing of the name is to be seen."""
        with self._lock:
            cluster = self._find(f"pcluster-{vlab_id}-{project_id}", faults)
            if cluster is None or self._age(cluster, faults) < 0:
                return None
            status, stack = self._status(cluster, faults)
        answer: dict[str, Any] = {
            "clusterName": cluster.name,
            "region": REGION,
            "version": VERSION,
            "cloudFormationStackStatus": stack,
            "clusterStatus": status,
            "cloudformationStackArn": _stack_arn(cluster.name),
            "creationTime": _iso(cluster.asked),
            "lastUpdatedTime": _iso(cluster.asked),
            "clusterConfiguration": {"url": _presigned(cluster.name)},
            "computeFleetStatus": faults.fleet if status == "CREATE_COMPLETE" else "UNKNOWN",
            "scheduler": {"type": "slurm"},
            "tags": [
                {"key": "obp:costcenter:vlabid", "value": cluster.vlab_id},
                {"key": "obp:costcenter:project", "value": cluster.project_id},
                {"key": "SBO_Billing", "value": "hpc:parallelcluster"},
            ],
            "vlab_id": cluster.vlab_id,
            "project_id": cluster.project_id,
            "clusterFsxId": "fs-0123456789abcdef0" if cluster.lustre else None,
        }
        # the instance exists from a third of the creation on, long before anybody can log in
        if status.startswith("CREATE") and self._age(cluster, faults) >= self._timing.create / 3:
            state = faults.head_node_state if status == "CREATE_COMPLETE" else "running"
            answer["headNode"] = {
                "instanceId": "i-0123456789abcdef0",
                "instanceType": "t3.large",
                "launchTime": _iso(cluster.asked),
                "privateIpAddress": self._head_node,
                "state": "pending" if self._age(cluster, faults) < self._timing.create * 2 / 3 else state,
            }
        if status == "CREATE_FAILED":
            reason = "Failed to execute OnNodeConfigured script 1, return code: 1."
            answer["failures"] = [{"failureCode": cluster.failure, "failureReason": reason}]
        return answer

    def summaries(self, faults: ProvisionerFaults) -> list[dict[str, Any]]:
        """GET without both ids."""
        with self._lock:
            found = [self._find(name, faults) for name in list(self._known)]
            return [self._summary(c, faults) for c in found if c is not None and self._age(c, faults) >= 0]

    def delete(self, vlab_id: str, project_id: str, faults: ProvisionerFaults) -> dict[str, Any] | None:
        """DELETE: the secrets go first, then the cluster; ``None`` if there is no cluster.

        Raises:
            ClientError: the secrets are gone already, whatever the cluster's state.
        """
        name = f"pcluster-{vlab_id}-{project_id}"
        with self._lock:
            for suffix in self._keys:
                self._manager.describe_secret(SecretId=name + suffix)
                self._manager.delete_secret(SecretId=name + suffix, ForceDeleteWithoutRecovery=True)
            cluster = self._find(name, faults)
            if cluster is None or self._age(cluster, faults) < 0:
                return None
            cluster.deleted = self._clock.now()
            cluster.delete_fails = faults.delete_fails
            self._keep()
            return self._summary(cluster, faults)

    def _summary(self, cluster: Cluster, faults: ProvisionerFaults) -> dict[str, Any]:
        status, stack = self._status(cluster, faults)
        return {
            "clusterName": cluster.name,
            "region": REGION,
            "version": VERSION,
            "cloudformationStackArn": _stack_arn(cluster.name),
            "cloudformationStackStatus": stack,
            "clusterStatus": status,
            "scheduler": {"type": "slurm"},
        }

    def _age(self, cluster: Cluster, faults: ProvisionerFaults) -> float:
        """Seconds since the stack became visible; negative before."""
        held = {"absent": -1.0, "creating": 0.0, "booting": self._timing.create / 2}
        return min(self._clock.now() - cluster.asked - self._timing.absent, held.get(faults.stage, float("inf")))

    def _gone(self, cluster: Cluster, faults: ProvisionerFaults) -> bool:
        """Whether its deletion took its time."""
        over = self._clock.now() - cluster.deleted >= self._timing.delete
        return bool(cluster.deleted) and over and faults.stage != "deleting"

    def _status(self, cluster: Cluster, faults: ProvisionerFaults) -> tuple[str, str]:
        if cluster.deleted:
            status = "DELETE_FAILED" if self._gone(cluster, faults) else "DELETE_IN_PROGRESS"
        elif self._age(cluster, faults) < self._timing.create:
            status = "CREATE_IN_PROGRESS"
        else:
            status = "CREATE_FAILED" if cluster.failure else "CREATE_COMPLETE"
        return status, status

    def _find(self, name: str, faults: ProvisionerFaults) -> Cluster | None:
        cluster = self._known.get(name)
        if cluster is None or cluster.delete_fails or not self._gone(cluster, faults):
            return cluster
        del self._known[name]
        self._keep()
        return None

    def _secrets(self, name: str) -> tuple[str, str, bool]:
        """ARNs of the user's and the administrator's key, and whether they are new."""
        arns, fresh = [], False
        for suffix, pem in self._keys.items():
            try:
                arns.append(self._manager.describe_secret(SecretId=name + suffix)["ARN"])
            except ClientError as error:
                if error.response["Error"]["Code"] != "ResourceNotFoundException":
                    raise
                arns.append(self._manager.create_secret(Name=name + suffix, SecretString=pem)["ARN"])
                fresh = True
        return arns[0], arns[1], fresh

    def _keep(self) -> None:
        save(self._file, json.dumps([asdict(cluster) for cluster in self._known.values()], indent=1))


def _stack_arn(name: str) -> str:
    return f"arn:aws:cloudformation:{REGION}:{_ACCOUNT}:stack/{name}/b0d1f2a0-0000-4000-8000-000000000000"


def _presigned(name: str) -> str:
    """A presigned URL is a secret in itself; this one opens nothing, and must show up in no log all the same."""
    path = f"https://parallelcluster-v1.s3.amazonaws.com/clusters/{name}/configs/cluster-config.yaml"
    return f"{path}?X-Amz-Expires=3600&X-Amz-Signature={secrets.token_hex(32)}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
