"""What the routes share: the project with its store and names, who calls, and how entities are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import Request, Response
from pydantic import Field

from sandbox.double import Knobs, Panel
from sandbox.nexus.access import Caller, Issuer, Permissions
from sandbox.nexus.errors import Refused
from sandbox.nexus.iris import FILES_SCHEMA, METADATA_CONTEXT, NXV, STORAGES_SCHEMA, UNCONSTRAINED, Names, one_or_many
from sandbox.nexus.store import Revision, Store

JSON_LD = "application/ld+json"


class NexusFaults(Knobs):
    """What can be wrong with Delta, or old about it."""

    unavailable: int = Field(0, ge=0)
    """Answer 503 to so many of the next requests, without looking at them."""
    lost_answers: int = Field(0, ge=0)
    """Do what so many of the next writes ask, and answer 503 all the same."""
    generation: Literal["1.9", "1.10", "1.11"] = "1.11"
    """1.9: linking by the upload route alone, S3 uploads need no length header, ``_project`` is a URL. 1.10: both ways
    to link. 1.11: ``/link/files`` alone, and ``_project`` short."""
    max_file_bytes: int = Field(10 * 1024**3, ge=0)
    """Largest upload."""


@dataclass(frozen=True)
class Delta:
    """One running double. ``s3`` is a boto3 client, or None when there is no S3."""

    names: Names
    store: Store
    issuer: Issuer
    permissions: Permissions
    panel: Panel[NexusFaults]
    volume: Path
    s3: Any

    def caller(self, request: Request) -> Caller:
        """Who sent the request. Raises Refused (401)."""
        return self.issuer.caller(request.headers.get("authorization"))

    def here(self, org: str, project: str) -> None:
        """Raises Refused (404) unless this is the project that exists."""
        if f"{org}/{project}" != self.names.project:
            raise Refused(404, "ProjectNotFound", f"Project '{org}/{project}' not found.")

    def reader(self, request: Request, org: str, project: str) -> Caller:
        """The caller, who may read the project."""
        return self._allowed(request, org, project, "resources/read")

    def writer(self, request: Request, org: str, project: str, permission: str = "resources/write") -> Caller:
        """The caller, who may write to the project."""
        return self._allowed(request, org, project, permission)

    def _allowed(self, request: Request, org: str, project: str, permission: str) -> Caller:
        caller = self.caller(request)
        # permission comes first: a stranger does not learn which projects exist
        self.permissions.require(caller, permission)
        self.here(org, project)
        return caller

    def metadata(self, found: Revision) -> dict[str, Any]:
        """The system's part of an entity: what a write answers, and what every read holds."""
        names, base = self.names, self.names.base
        long_project = self.panel.now.generation == "1.9"
        schemas = {"resource": found.schema or UNCONSTRAINED, "file": FILES_SCHEMA, "storage": STORAGES_SCHEMA}
        shown = {
            "_self": names.self_url(found.kind, found.id),
            "_constrainedBy": schemas[found.kind],
            "_project": f"{base}/projects/{names.project}" if long_project else names.project,
            "_rev": found.rev,
            "_deprecated": found.deprecated,
            "_createdAt": found.created_at,
            "_createdBy": found.created_by,
            "_updatedAt": found.at,
            "_updatedBy": found.by,
        }
        if found.kind == "resource":
            types = names.types(found.source)
            return {"@id": found.id, **({"@type": one_or_many(types)} if types else {}), **shown}
        return {"@id": found.id, **self.described(found), **shown}

    def described(self, found: Revision) -> dict[str, Any]:
        """What is particular to a file or storage."""
        if found.kind == "storage":
            return found.source | {"@type": ["Storage", found.source["@type"]], "_algorithm": "SHA-256"}
        known = found.attributes
        storage = self.store.find(known["storage"])
        shown = {
            "@type": "File",
            **{name: known[name] for name in ("name", "description") if known.get(name)},
            "_bytes": known["bytes"],
            "_digest": {"_algorithm": "SHA-256", "_value": known["digest"]} if known["digest"] else {"_value": ""},
            "_filename": known["filename"],
            "_mediaType": known["media_type"],
            "_origin": known["origin"],
            "_storage": {
                "@id": known["storage"],
                "@type": (storage.source["@type"] if storage else f"{NXV}Storage"),
                "_rev": storage.rev if storage else 1,
            },
            "_uuid": known["uuid"],
        }
        if known.get("keywords"):
            shown["_keywords"] = known["keywords"]
        if known.get("location") and storage and storage.source["@type"] == "S3Storage":
            shown["_location"] = known["location"]  # hidden for disks by default
        return shown


def show(delta: Delta, found: Revision, status: int = 200) -> Response:
    """The metadata-only answer to a write."""
    return json_ld({"@context": METADATA_CONTEXT, **delta.metadata(found)}, status)


def json_ld(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON-LD answer."""
    return Response(json.dumps(body, ensure_ascii=False), status, headers=headers, media_type=JSON_LD)


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body.

    Raises:
        Refused: it is not a JSON object.
    """
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise Refused(400, "MalformedRequestContentRejection", f"The request content was malformed: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "MalformedRequestContentRejection", "The request content was malformed: no JSON object.")
    return body


def write(delta: Delta, do: Callable[[], Response]) -> Response:
    """Carry out a write, whose answer a knob may lose."""
    answer = do()
    if delta.panel.now.lost_answers:
        delta.panel.turn({"lost_answers": delta.panel.now.lost_answers - 1})
        return Response("upstream connect error or disconnect/reset before headers", 503, media_type="text/plain")
    return answer
