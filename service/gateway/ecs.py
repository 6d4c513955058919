"""Instances as tasks of an ECS cluster; what its API really answers is in ``contracts.md`` §8.2.

A project's task definition (its own role and its own folder of the file system) is made when the project is admitted,
see ``container/project.yaml``. Tasks are bare, not of an ECS service, for a service would restart an idle one.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bbpwf.errors import InstanceFailed
from bbpwf.settings import AwsSettings, GatewaySettings
from service.gateway.authorizer import Project
from service.gateway.backend import AS_IT_SHOULD, Found, Order, Phase, Refused, Sighting

_log = logging.getLogger(__name__)

PORT = 8100
_COMING = frozenset({"PROVISIONING", "PENDING", "ACTIVATING"})
_ON_PURPOSE = frozenset({"UserInitiated", "ServiceSchedulerInitiated"})
_TAGGABLE = re.compile(r"[^A-Za-z0-9 _.:/=+@-]")


class EcsBackend:
    """See :class:`service.gateway.backend.Backend`."""

    def __init__(self, settings: GatewaySettings, aws: AwsSettings, *, port: int = PORT) -> None:
        self._settings = settings
        self._port = port
        limits = Config(connect_timeout=2, read_timeout=8, retries={"mode": "standard", "total_max_attempts": 3})
        self._client: Any = boto3.session.Session().client(
            "ecs", region_name=aws.region, endpoint_url=aws.endpoint_url or None, config=limits
        )

    def start(self, order: Order) -> str:
        """``RunTask``. The client token makes the same order the same task; a failure may come with status 200."""
        project, settings = order.project, self._settings
        answer = self._call(
            "the instance could not be started",
            self._client.run_task,
            taskDefinition=f"{settings.task_family}-{project.name}",
            count=1,
            launchType="FARGATE",
            networkConfiguration={
                "awsvpcConfiguration": {
                    "subnets": list(settings.subnets),
                    "securityGroups": list(settings.security_groups),
                    "assignPublicIp": "DISABLED",
                }
            },
            tags=[
                {"key": "obp:costcenter:vlabid", "value": project.virtual_lab_id},
                {"key": "obp:costcenter:project", "value": project.project_id},
                {"key": "SBO_Billing", "value": _TAGGABLE.sub("_", settings.cost_tag)[:256]},
                {"key": "bbpwf:user", "value": _TAGGABLE.sub("_", order.sub)[:256]},
                {"key": "bbpwf:generation", "value": str(order.generation)},
            ],
            enableECSManagedTags=True,
            startedBy=started_by(project),
            clientToken=hashlib.sha256(f"{project.key}#{order.generation}".encode()).hexdigest(),
        )
        tasks = answer.get("tasks", [])
        if not tasks:
            failures = answer.get("failures", [])
            reasons = ", ".join(sorted({str(each.get("reason", "no reason")) for each in failures})) or "no reason"
            raise Refused(f"ECS has no place for the instance: {reasons}", where=settings.ecs_cluster)
        return str(tasks[0]["taskArn"])

    def look(self, instance: str) -> Sighting:
        """``DescribeTasks``."""
        answer = self._call("the instance cannot be seen", self._client.describe_tasks, tasks=[instance])
        tasks = answer.get("tasks", [])
        if not tasks:
            return Sighting(Phase.UNSEEN, reason="ECS shows no such task")
        return sighting(tasks[0], self._port)

    def stop(self, instance: str, reason: str) -> None:
        """``StopTask``: SIGTERM, and SIGKILL after the task definition's ``stopTimeout``."""
        _log.info("stopping instance %s: %s", instance, reason)
        self._call("the instance cannot be stopped", self._client.stop_task, task=instance, reason=reason[:255])

    def all(self) -> Sequence[Found]:
        """Nothing.

        The table is not lost, and what a lost write started is found by its client token: there is no need for the
        right to list tasks.
        """
        return ()

    def _call(self, what: str, call: Callable[..., Mapping[str, Any]], **arguments: Any) -> Mapping[str, Any]:
        try:
            return call(cluster=self._settings.ecs_cluster, **arguments)
        except ClientError as error:
            said = error.response.get("Error", {})
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            kind = Refused if 400 <= status < 500 else InstanceFailed
            detail = f"{said.get('Code', 'unknown')}: {str(said.get('Message', ''))[:300]}"
            raise kind(f"{what}: {detail}", where=self._settings.ecs_cluster) from error
        except BotoCoreError as error:
            raise InstanceFailed(f"{what} ({type(error).__name__})", where=self._settings.ecs_cluster) from error


def started_by(project: Project) -> str:
    """``startedBy`` of a project's tasks: at most 128 characters of ECS's alphabet."""
    whole = f"bbpwf/{project.key}"
    return whole if len(whole) <= 128 else f"bbpwf/{hashlib.sha256(project.key.encode()).hexdigest()}"


def sighting(task: Mapping[str, Any], port: int = PORT) -> Sighting:
    """What one task of ``DescribeTasks`` tells."""
    status = str(task.get("lastStatus", ""))
    containers: Sequence[Mapping[str, Any]] = task.get("containers", [])
    if status in _COMING:
        return Sighting(Phase.STARTING, reason=f"its task is {status}")
    if status == "RUNNING" and task.get("desiredStatus") != "STOPPED":
        if task.get("healthStatus") == "UNHEALTHY":
            return Sighting(Phase.SICK, reason="its service does not answer")
        address = _address(task, containers)
        if task.get("healthStatus") == "HEALTHY" and address:
            return Sighting(Phase.READY, address=f"{address}:{port}")
        return Sighting(Phase.STARTING, reason="its service comes up")
    if status != "STOPPED" and not task.get("stopCode"):
        return Sighting(Phase.STARTING, reason="its predecessor is ending")  # it may hold the state: wait for its end
    codes = [each.get("exitCode") for each in containers]
    reason = str(task.get("stoppedReason", "")) or f"its task is {status}"
    if status != "STOPPED":
        return Sighting(Phase.STARTING, reason=f"its task is ending: {reason}"[:300])
    stopped_itself = task.get("stopCode") == "EssentialContainerExited" and codes and AS_IT_SHOULD.issuperset(codes)
    if task.get("stopCode") in _ON_PURPOSE or stopped_itself:
        return Sighting(Phase.RESTING, reason=reason[:300])
    return Sighting(Phase.GONE, reason=reason[:300])


def _address(task: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]) -> str:
    for container in containers:
        for interface in container.get("networkInterfaces", []):
            if interface.get("privateIpv4Address"):
                return str(interface["privateIpv4Address"])
    for attachment in task.get("attachments", []):
        for detail in attachment.get("details", []):
            if detail.get("name") in {"privateIPv4Address", "privateIPv4address"}:
                return str(detail["value"])
    return ""
