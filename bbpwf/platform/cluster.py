"""What the provisioner says of a cluster: names, descriptions, and which secret holds which key.

Pure: JSON in, types out. Facts from ``contracts.md`` §1.3 to §1.6. The presigned URL in a description
(``clusterConfiguration``) opens the cluster's configuration to whoever has it: it is dropped here, so that it
can reach no log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bbpwf.errors import InvalidConfig, ProvisionerError
from bbpwf.settings import ProjectSettings

_log = logging.getLogger(__name__)

NAME_LIMIT = 60
"""Longest cluster name that ParallelCluster takes (its ``cli/src/pcluster/constants.py``)."""
USER = "sim"
ADMIN = "ec2-user"
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*\Z")
_ID = re.compile(r"[a-zA-Z0-9-]+\Z")
_LOGIN = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_SECRET_ARN = re.compile(r"arn:[a-z-]+:secretsmanager:[a-z0-9-]+:\d{12}:secret:(?P<name>.+)-[A-Za-z0-9]{6}\Z")
# newest first; the last one was the administrator's key in the beginning, and the user's for a while (contracts §1.4)
_KEY_FIELDS = (
    "user_private_ssh_key_arn",
    "admin_private_ssh_key_arn",
    "admin_user_private_ssh_key_arn",
    "private_ssh_key_arn",
)


class ClusterStatus(StrEnum):
    """``clusterStatus`` of a description; rollbacks are already mapped to a failure by ParallelCluster."""

    CREATE_IN_PROGRESS = "CREATE_IN_PROGRESS"
    CREATE_FAILED = "CREATE_FAILED"
    CREATE_COMPLETE = "CREATE_COMPLETE"
    DELETE_IN_PROGRESS = "DELETE_IN_PROGRESS"
    DELETE_FAILED = "DELETE_FAILED"
    DELETE_COMPLETE = "DELETE_COMPLETE"
    UPDATE_IN_PROGRESS = "UPDATE_IN_PROGRESS"
    UPDATE_COMPLETE = "UPDATE_COMPLETE"
    UPDATE_FAILED = "UPDATE_FAILED"


@dataclass(frozen=True)
class ClusterName:
    """A project's cluster and the ids that the provisioner is asked with."""

    vlab_id: str
    project_id: str

    def __str__(self) -> str:
        return f"pcluster-{self.vlab_id}-{self.project_id}"

    @property
    def user_secret(self) -> str:
        """Name of the secret with the ordinary user's key."""
        return f"{self}_sim"

    @property
    def admin_secret(self) -> str:
        """Name of the secret with the administrator's key."""
        return str(self)


def cluster_name(project: ProjectSettings, *, short_ids: bool) -> ClusterName:
    """The name of a project's cluster.

    The provisioner accepts a name that ParallelCluster refuses, and no cluster ever appears (contracts §1.6, 2); so
    it is checked here.

    Raises:
        InvalidConfig: an id has other characters than letters, digits and dashes, or the name is too long.
    """
    ids = {"virtual_lab_id": project.virtual_lab_id, "project_id": project.project_id}
    for field, value in ids.items():
        if not _ID.match(value):
            raise InvalidConfig(
                f"{field} {value!r} cannot be part of a cluster's name: only letters, digits and dashes can",
                hint=f"Correct BBPWF_PROJECT__{field.upper()}.",
            )
    vlab_id, project_id = (value.split("-", 1)[0] if short_ids else value for value in ids.values())
    name = ClusterName(vlab_id, project_id)
    if not (vlab_id and project_id and _NAME.match(str(name))) or len(str(name)) > NAME_LIMIT:
        raise InvalidConfig(
            f"the cluster's name {str(name)!r} has {len(str(name))} characters, and ParallelCluster takes "
            f"at most {NAME_LIMIT}",
            hint="Set BBPWF_PROVISIONER__SHORT_IDS=true, or use shorter ids.",
        )
    return name


@dataclass(frozen=True)
class HeadNode:
    """The instance to log in to. ``state`` as EC2 names it; ``running`` says nothing about users or Slurm."""

    address: str
    state: str


@dataclass(frozen=True)
class ClusterDescription:
    """A cluster as ``describe`` shows it.

    ``status`` is ``None`` when ``status_name`` is not in the table; it is then reported, never guessed. ``failures``
    are pairs of code and reason and exist in CREATE_FAILED alone. ``fleet`` is UNKNOWN during creation.
    """

    name: str
    status_name: str
    stack_status: str
    fleet: str
    head_node: HeadNode | None = None
    failures: tuple[tuple[str, str], ...] = ()
    fsx_id: str = ""
    region: str = ""

    @property
    def status(self) -> ClusterStatus | None:
        """``status_name`` if it is one we know."""
        return ClusterStatus.__members__.get(self.status_name)


def parse_description(content: object, name: ClusterName) -> ClusterDescription:
    """A description from the JSON of ``GET /pcluster`` with both ids.

    Raises:
        ProvisionerError: it is something else, e.g. the list that the provisioner answers when an id is missing,
            or another cluster's.
    """
    if not isinstance(content, dict) or not isinstance(content.get("clusterStatus"), str):
        raise ProvisionerError(f"the provisioner's description of {name} has no clusterStatus")
    if content.get("clusterName") != str(name):
        raise ProvisionerError(f"the provisioner described {_text(content, 'clusterName')!r} when asked for {name}")
    head = content.get("headNode")
    failures = content.get("failures")
    return ClusterDescription(
        name=str(name),
        status_name=_text(content, "clusterStatus"),
        # upper-case F in a description, lower-case in a summary (contracts §1.5)
        stack_status=_text(content, "cloudFormationStackStatus") or _text(content, "cloudformationStackStatus"),
        fleet=_text(content, "computeFleetStatus") or "UNKNOWN",
        head_node=HeadNode(_text(head, "privateIpAddress"), _text(head, "state")) if isinstance(head, dict) else None,
        failures=tuple(
            (_text(failure, "failureCode"), _text(failure, "failureReason"))
            for failure in (failures if isinstance(failures, list) else [])
            if isinstance(failure, dict)
        ),
        fsx_id=_text(content, "clusterFsxId"),
        region=_text(content, "region"),
    )


@dataclass(frozen=True)
class KeyRef:
    """Who logs in, and the secret (full ARN, or name if no right ARN is known) that holds the private key."""

    user: str
    secret_id: str


@dataclass(frozen=True)
class ClusterKeys:
    """The ordinary user's key and the administrator's; on the oldest provisioners the two are one."""

    login: KeyRef
    admin: KeyRef


def choose_keys(content: object, name: ClusterName, remembered: ClusterKeys | None = None) -> ClusterKeys:
    """Which secrets hold the keys, from the JSON of ``POST /pcluster``.

    Three generations of field names are understood (contracts §1.4). A repeated POST may answer wrong or exchanged ARNs
    (§1.6, 4), so an ARN is believed for what its own secret name says, not for the field it stands in. Where the right
    one is not among them, the one remembered from an earlier answer is used, else the secret's name, which is enough
    within one account.

    Raises:
        ProvisionerError: the answer is about another cluster, or names no key at all.
    """
    cluster = content.get("cluster") if isinstance(content, dict) else None
    if not isinstance(cluster, dict) or cluster.get("clusterName", str(name)) != str(name):
        raise ProvisionerError(f"the provisioner's answer to a request for {name} is not about it")
    given = {field: arn for field in _KEY_FIELDS if (arn := _text(cluster, field))}
    if not given:
        raise ProvisionerError(f"the provisioner named no SSH key for {name}")
    arns = {secret: arn for arn in given.values() if (secret := secret_name(arn))}
    only_admin = set(given) == {"private_ssh_key_arn"} and name.user_secret not in arns
    known = {ref.secret_id for ref in (remembered.login, remembered.admin)} if remembered else set()

    def find(secret: str) -> str:
        if secret in arns:
            return arns[secret]
        _log.warning("the provisioner answered no ARN of secret %s, but of: %s", secret, ", ".join(sorted(arns)) or "-")
        return next((arn for arn in known if secret_name(arn) == secret), secret)

    admin = KeyRef(ADMIN, find(name.admin_secret))
    user = _text(cluster, "ssh_user")
    if user and not _LOGIN.match(user):
        raise ProvisionerError(f"the provisioner named an impossible login for {name}: {user[:40]!r}")
    if only_admin:
        return ClusterKeys(KeyRef(user or ADMIN, admin.secret_id), admin)
    return ClusterKeys(KeyRef(user or USER, find(name.user_secret)), admin)


def secret_name(arn: str) -> str:
    """The name in a secret's full ARN (which ends in ``-`` and six random characters); empty if it is none."""
    match = _SECRET_ARN.match(arn)
    return match["name"] if match else ""


def _text(content: Mapping[str, object], name: str) -> str:
    value = content.get(name)
    return value if isinstance(value, str) else ""
