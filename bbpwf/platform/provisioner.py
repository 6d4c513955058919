"""Client of the HPC resource provisioner: which cluster a project has, and how to get one.

Everything goes in the query string, signed with Signature Version 4 for ``execute-api`` (``contracts.md`` §1). These
are single requests; waiting for a cluster is :mod:`bbpwf.platform.provisioning`.
"""

from __future__ import annotations

import requests

from bbpwf.clock import Clock
from bbpwf.errors import InvalidConfig, ProvisionerError
from bbpwf.platform.aws import CredentialsProvider, SigV4
from bbpwf.platform.cluster import (
    ClusterDescription,
    ClusterKeys,
    choose_keys,
    cluster_name,
    parse_description,
)
from bbpwf.platform.http import Limits, Reply, exchange
from bbpwf.settings import ProjectSettings, ProvisionerSettings

_RETRYABLE = frozenset({429, 500, 502, 503, 504})


class ProvisionerClient:
    """Requests about the cluster of one project.

    Args:
        settings: where the provisioner is, and what cluster to ask it for.
        project: whose cluster.
        credentials: asked before every request.
        clock: measures time-outs.
        keys: the keys that an earlier process learnt, so that a wrong answer does not mislead this one.

    Raises:
        InvalidConfig: there is no URL, or ParallelCluster would refuse the name of the project's cluster.

    Every method raises ProvisionerError: ``retryable`` when the provisioner or API Gateway could not answer now,
    not when it refused. One thread at a time.
    """

    def __init__(
        self,
        settings: ProvisionerSettings,
        project: ProjectSettings,
        *,
        credentials: CredentialsProvider,
        clock: Clock,
        keys: ClusterKeys | None = None,
    ) -> None:
        if settings.url is None:
            raise InvalidConfig("there is no URL of a provisioner", hint="Set BBPWF_PROVISIONER__URL.")
        self.name = cluster_name(project, short_ids=settings.short_ids)
        self.keys = keys
        self._settings = settings
        self._url = str(settings.url).rstrip("/")
        self._credentials = credentials
        self._clock = clock
        self._session = requests.Session()

    def request(self) -> ClusterKeys:
        """Ask for the cluster, and learn where its keys are.

        Harmless when the cluster exists, and answers the same either way; never to be sent while the cluster is being
        deleted, for then the keys are renewed and no cluster follows (contracts §1.6, 3).
        """
        query = {
            **self._ids(),
            "tier": self._settings.tier,
            "include_lustre": "true" if self._settings.include_lustre else "false",
        }
        if self._settings.dev:
            query["dev"] = "true"
        reply = self._send("POST", "/pcluster", query)
        self._expect(reply, "a request for a cluster")
        self.keys = choose_keys(reply.json(), self.name, self.keys)
        return self.keys

    def describe(self) -> ClusterDescription | None:
        """The cluster as it is now; ``None`` if there is none, or not yet: for minutes after a request."""
        reply = self._send("GET", "/pcluster", self._ids())
        if reply.status == 404:
            return None
        self._expect(reply, f"a question about {self.name}")
        return parse_description(reply.json(), self.name)

    def list(self) -> dict[str, str]:
        """Status by name of all clusters of the account, as far as the first page goes."""
        reply = self._send("GET", "/pcluster", {})
        self._expect(reply, "a question for all clusters")
        content = reply.json()
        clusters = content.get("clusters") if isinstance(content, dict) else None
        if not isinstance(clusters, list):
            raise ProvisionerError("the provisioner's list of clusters is none", where=self._url)
        return {
            str(cluster.get("clusterName")): str(cluster.get("clusterStatus"))
            for cluster in clusters
            if isinstance(cluster, dict)
        }

    def delete(self) -> bool:
        """Delete the cluster with its file system and keys; False if there is none. Data not exported is lost.

        A cluster that is already being deleted answers an error: its secrets, which go first, are gone (§1.4).
        """
        reply = self._send("DELETE", "/pcluster", self._ids())
        self.keys = None
        if reply.status == 404:
            return False
        if reply.status == 500 and "ResourceNotFoundException" in reply.said():
            raise ProvisionerError(
                f"{self.name} has no keys any more: it was deleted before, or is being deleted now",
                where=self._url,
                hint="Look at the cluster's status.",
            )
        self._expect(reply, f"the deletion of {self.name}")
        return True

    def version(self) -> str:
        """The provisioner's version."""
        reply = self._send("GET", "/version", {})
        self._expect(reply, "a question for its version")
        content = reply.json()
        return str(content["version"]) if isinstance(content, dict) and "version" in content else reply.said(60)

    def _ids(self) -> dict[str, str]:
        return {"project_id": self.name.project_id, "vlab_id": self.name.vlab_id}

    def _send(self, method: str, path: str, query: dict[str, str]) -> Reply:
        return exchange(
            self._session,
            method,
            self._url + path,
            what="the provisioner",
            limits=Limits(self._settings.request_timeout_s),
            clock=self._clock,
            error=ProvisionerError,
            params=query,
            auth=SigV4(self._credentials(), "execute-api", self._settings.region),
        )

    def _expect(self, reply: Reply, what: str) -> None:
        if reply.status == 200:
            return
        said = reply.said()
        message = f"the provisioner answered {what} with {reply.status}" + (f": {said}" if said else "")
        if reply.status == 403:
            raise ProvisionerError(
                message,
                where=self._url,
                hint="Check the AWS credentials and their right to execute-api:Invoke, BBPWF_PROVISIONER__URL, "
                "and that this machine's clock is right.",
                retryable=False,
            )
        raise ProvisionerError(message, where=self._url, retryable=reply.status in _RETRYABLE)
