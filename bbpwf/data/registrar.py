"""Registering what a run did and made: executions, campaigns, simulations, activities, and the files of each.

Tasks speak to a :class:`Registrar`; :class:`NexusRegistrar` writes to Nexus Delta in the shapes of the
platform's ontology (those that entity-management publishes). Ids follow from the run and from what the thing is
called in it, so that registering again, after a crash or a resume, brings the same resource up to date.
"""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from bbpwf.cluster.jobs import Archived
from bbpwf.data.nexus import Content, NexusClient, Resource
from bbpwf.errors import InvalidInput

CONTEXT = "https://bbp.neuroshapes.org"
SCHEMAS = {
    "WorkflowExecution": "https://bbp.epfl.ch/shapes/dash/workflowexecution",
    "Activity": "https://neuroshapes.org/dash/activity",
    "SimulationCampaign": "https://bbp.epfl.ch/shapes/dash/simulationcampaign",
    "Simulation": "https://neuroshapes.org/dash/simulation",
}
"""Schema by type; the types that can be registered."""


class Status(StrEnum):
    """How far an activity came, in the ontology's words."""

    PENDING = "Pending"
    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"


@dataclass(frozen=True)
class Reference:
    """A link to a registered thing: its id and type, and the page that shows it (``_self``), if known."""

    id: str
    type: str
    url: str = ""
    rev: int = 0

    def link(self) -> dict[str, str]:
        """As other resources point to it."""
        return {"@id": self.id, "@type": self.type}


@dataclass(frozen=True)
class Distribution:
    """Where a file's bytes are: ``content_url`` in the knowledge graph's storage, or ``url`` elsewhere.

    ``size`` in bytes, ``digest`` hex; both empty digest fields mean that it is not known.
    """

    name: str
    media_type: str
    size: int
    algorithm: str = ""
    digest: str = ""
    content_url: str = ""
    url: str = ""

    def payload(self) -> dict[str, Any]:
        """A DataDownload node.

        Raises:
            InvalidInput: there is no URL at all.
        """
        if not (self.content_url or self.url):
            raise InvalidInput(f"the distribution {self.name!r} says nowhere where its content is")
        return _without_empty(
            {
                "@type": "DataDownload",
                "name": self.name,
                "contentUrl": self.content_url,
                "url": self.url,
                "encodingFormat": self.media_type,
                "contentSize": {"unitCode": "bytes", "value": self.size},
                "digest": {"algorithm": self.algorithm, "value": self.digest} if self.digest else None,
            }
        )


@dataclass(frozen=True)
class Span:
    """When something ran: Unix seconds, ``None`` while unknown."""

    started: float | None = None
    ended: float | None = None

    def payload(self) -> dict[str, str | None]:
        """Times as entity-management writes them: UTC without an offset."""
        return {"startedAtTime": _time(self.started), "endedAtTime": _time(self.ended)}


@dataclass(frozen=True)
class Execution:
    """A run as a whole. ``parameters`` is what it was launched with."""

    run_id: str
    module: str
    task: str
    version: str
    status: Status
    parameters: str = ""
    config_file_name: str = ""
    output: str = ""
    span: Span = Span()
    distribution: Distribution | None = None


@dataclass(frozen=True)
class Campaign:
    """A simulation campaign: its coordinates, each with its values, and attributes common to all points."""

    run_id: str
    name: str
    description: str = ""
    coords: Mapping[str, Sequence[float | int | str]] = field(default_factory=dict)
    attributes: Mapping[str, float | int | str] = field(default_factory=dict)
    distributions: Sequence[Distribution] = ()


@dataclass(frozen=True)
class Simulation:
    """One point of a campaign. ``label`` tells it from the other points of the run."""

    run_id: str
    label: str
    name: str
    status: Status
    campaign: Reference
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)
    span: Span = Span()
    used: Sequence[Reference] = ()
    distributions: Sequence[Distribution] = ()
    execution: Reference | None = None


@dataclass(frozen=True)
class Activity:
    """Anything else that a run did: what it used, what came of it. ``label`` tells it from others of the run."""

    run_id: str
    label: str
    name: str
    status: Status
    span: Span = Span()
    used: Sequence[Reference] = ()
    generated: Sequence[Reference] = ()
    distributions: Sequence[Distribution] = ()
    execution: Reference | None = None


class Registrar(Protocol):
    """Where results are registered. Every call may be repeated; the last one holds."""

    def reference(self, type_: str, run_id: str, label: str = "") -> Reference:
        """The id that a thing of a run has or will have; nothing is sent."""
        ...

    def upload(self, run_id: str, name: str, content: Content, media_type: str = "") -> Distribution:
        """Put a file of the run into the storage. ``name`` is its path within the run's results."""
        ...

    def archived(self, run_id: str, name: str, file: Archived, media_type: str = "") -> Distribution:
        """A file of the run that was confirmed in the archive, registered without copying it."""
        ...

    def execution(self, execution: Execution) -> Reference:
        """Register a run, or bring it up to date."""
        ...

    def campaign(self, campaign: Campaign) -> Reference:
        """Register a campaign, or bring it up to date."""
        ...

    def simulation(self, simulation: Simulation) -> Reference:
        """Register a simulation, or bring it up to date."""
        ...

    def activity(self, activity: Activity) -> Reference:
        """Register an activity, or bring it up to date."""
        ...


class NexusRegistrar:
    """The registrar for Nexus Delta. Every method raises NexusError when Delta refuses or cannot be reached."""

    def __init__(self, client: NexusClient) -> None:
        self._client = client

    def reference(self, type_: str, run_id: str, label: str = "") -> Reference:
        """The id that a thing of a run has or will have; nothing is sent.

        Raises:
            InvalidInput: no such type.
        """
        if type_ not in SCHEMAS:
            raise InvalidInput(f"{type_!r} is not a type that can be registered: {', '.join(SCHEMAS)}")
        return Reference(self._id(type_, run_id, label), type_)

    def upload(self, run_id: str, name: str, content: Content, media_type: str = "") -> Distribution:
        """Put a file of the run into the storage."""
        media_type = media_type or guess_media_type(name)
        file = self._client.upload(
            self._id("File", run_id, name), content, filename=_basename(name), media_type=media_type
        )
        algorithm, digest = file.digest
        return Distribution(name, media_type, content.size, algorithm, digest, content_url=file.self_url)

    def archived(self, run_id: str, name: str, file: Archived, media_type: str = "") -> Distribution:
        """A file that was confirmed in the archive: linked when the storage is on its bucket, else named by its URL."""
        media_type = media_type or guess_media_type(name)
        bucket, _, key = file.url.removeprefix("s3://").partition("/")
        known = Distribution(name, media_type, file.size, "SHA-256", file.sha256)
        if bucket != self._client.storage_bucket():
            return _at(known, url=file.url)
        linked = self._client.link(self._id("File", run_id, name), key, size=file.size, media_type=media_type)
        # Delta has no digest of most objects; the one that was computed on the cluster and confirmed counts
        return _at(known, content_url=linked.self_url)

    def execution(self, execution: Execution) -> Reference:
        """Register a run, or bring it up to date."""
        payload = {
            "name": f"{execution.module}.{execution.task}",
            "module": execution.module,
            "task": execution.task,
            "version": execution.version,
            "parameters": execution.parameters,
            "configFileName": execution.config_file_name,
            "output": execution.output,
            "status": execution.status.value,
            "distribution": execution.distribution.payload() if execution.distribution else None,
            **execution.span.payload(),
        }
        return self._publish("WorkflowExecution", execution.run_id, "", payload)

    def campaign(self, campaign: Campaign) -> Reference:
        """Register a campaign, or bring it up to date."""
        payload = {
            "name": campaign.name,
            "description": campaign.description,
            "parameter": {
                "coords": {name: list(values) for name, values in campaign.coords.items()},
                "attrs": dict(campaign.attributes),
            },
            "distribution": [each.payload() for each in campaign.distributions],
        }
        return self._publish("SimulationCampaign", campaign.run_id, "", payload)

    def simulation(self, simulation: Simulation) -> Reference:
        """Register a simulation, or bring it up to date."""
        payload = {
            "name": simulation.name,
            "status": simulation.status.value,
            "parameter": {"coords": dict(simulation.parameters)},
            "isPartOf": simulation.campaign.link(),
            "used": [each.link() for each in simulation.used],
            "distribution": [each.payload() for each in simulation.distributions],
            "wasInfluencedBy": simulation.execution.link() if simulation.execution else None,
            **simulation.span.payload(),
        }
        return self._publish("Simulation", simulation.run_id, simulation.label, payload)

    def activity(self, activity: Activity) -> Reference:
        """Register an activity, or bring it up to date."""
        payload = {
            "name": activity.name,
            "status": activity.status.value,
            "used": [each.link() for each in activity.used],
            "generated": [each.link() for each in activity.generated],
            "distribution": [each.payload() for each in activity.distributions],
            "wasInfluencedBy": activity.execution.link() if activity.execution else None,
            **activity.span.payload(),
        }
        return self._publish("Activity", activity.run_id, activity.label, payload)

    def _publish(self, type_: str, run_id: str, label: str, payload: Mapping[str, Any]) -> Reference:
        # what is empty is taken away, so that a resumed run does not keep the end of its first attempt
        filled = {name: None if value in ("", []) else value for name, value in payload.items()}
        body = {"@context": [CONTEXT], "@type": type_, **filled}
        answer: Resource = self._client.publish(self._id(type_, run_id, label), body, schema=SCHEMAS[type_])
        return Reference(answer.id, type_, answer.self_url, answer.rev)

    def _id(self, type_: str, run_id: str, label: str) -> str:
        if not run_id:
            raise InvalidInput(f"a {type_} cannot be registered without its run's id")
        name = f"bbpwf\0{self._client.id_base}\0{run_id}\0{type_}\0{label}"
        return f"{self._client.id_base}{uuid.uuid5(uuid.NAMESPACE_URL, name)}"


def guess_media_type(name: str) -> str:
    """From a file's name; HDF5 and SONATA files are known too."""
    if name.endswith((".h5", ".hdf5", ".nwb")):
        return "application/x-hdf5"
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _at(known: Distribution, *, content_url: str = "", url: str = "") -> Distribution:
    return Distribution(
        known.name, known.media_type, known.size, known.algorithm, known.digest, content_url=content_url, url=url
    )


def _basename(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1] or "file"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def _without_empty(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that are not known are left out, as entity-management does."""
    return {name: value for name, value in payload.items() if value not in (None, "", [])}
