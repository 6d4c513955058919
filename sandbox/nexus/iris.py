"""How Delta names things: ids, types and schemas, given short and answered in full."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from sandbox.nexus.errors import Refused

NXV = "https://bluebrain.github.io/nexus/vocabulary/"
METADATA_CONTEXT = "https://bluebrain.github.io/nexus/contexts/metadata.json"
UNCONSTRAINED = "https://bluebrain.github.io/nexus/schemas/unconstrained.json"
FILES_SCHEMA = "https://bluebrain.github.io/nexus/schemas/files.json"
STORAGES_SCHEMA = "https://bluebrain.github.io/nexus/schemas/storages.json"
NEUROSHAPES_CONTEXT = "https://bbp.neuroshapes.org"

SCHEMAS = {
    UNCONSTRAINED: "",
    "https://bbp.epfl.ch/shapes/dash/workflowexecution": "WorkflowExecution",
    "https://neuroshapes.org/dash/activity": "Activity",
    "https://bbp.epfl.ch/shapes/dash/simulationcampaign": "SimulationCampaign",
    "https://neuroshapes.org/dash/simulation": "Simulation",
}
"""The schemas that exist, each with the type that a resource of it must have."""

_PREFIXES = {
    "nxv": NXV,
    "nsg": "https://neuroshapes.org/",
    "prov": "http://www.w3.org/ns/prov#",
    "schema": "http://schema.org/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
_PROV = {"Activity", "Agent", "Entity", "SoftwareAgent", "Person", "Organization", "Collection", "Plan"}
_SCHEMA_ORG = {"DataDownload", "Dataset", "PropertyValue"}
_IRI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+\Z")


class Names:
    """The names of one project below the API's ``base``, e.g. ``http://127.0.0.1:8080/v1``."""

    def __init__(self, base: str, org: str, project: str) -> None:
        self.base = base
        self.org = org
        self.name = project
        self.project = f"{org}/{project}"

    def new_id(self) -> str:
        """An id as Delta generates them."""
        return f"{self.base}/resources/{self.project}/_/{uuid.uuid4()}"

    def id(self, segment: str) -> str:
        """The full id that a percent-encoded path segment, or an ``@id``, names.

        Raises:
            Refused: InvalidResourceId.
        """
        text = unquote(segment)
        prefix, colon, rest = text.partition(":")
        if colon and prefix in _PREFIXES:
            text = _PREFIXES[prefix] + rest
        elif not colon:
            text = f"{self.base}/resources/{self.project}/_/{text}"
        if not _IRI.match(text):
            raise Refused(400, "InvalidResourceId", f"Resource identifier '{unquote(segment)}' cannot be expanded.")
        return text

    def schema(self, segment: str) -> str | None:
        """The full schema id, ``None`` for ``_``.

        Raises:
            Refused: InvalidSchemaRejection, for a schema that does not exist.
        """
        if unquote(segment) == "_":
            return None
        id_ = self.id(segment)
        if id_ not in SCHEMAS:
            raise Refused(404, "InvalidSchemaRejection", f"Schema '{id_}' could not be resolved in '{self.project}'.")
        return id_

    def self_url(self, kind: str, id_: str) -> str:
        """``_self`` of a resource, file or storage."""
        middle = "/_" if kind == "resource" else ""
        return f"{self.base}/{kind}s/{self.project}{middle}/{quote(id_, safe='')}"

    def types(self, payload: dict[str, Any]) -> list[str]:
        """The payload's types as full IRIs, by its context."""
        known = _contexts(payload)
        return [self._type(name, NEUROSHAPES_CONTEXT in known) for name in listed(payload.get("@type"))]

    def _type(self, name: str, neuroshapes: bool) -> str:
        prefix, colon, rest = name.partition(":")
        if colon:
            return _PREFIXES[prefix] + rest if prefix in _PREFIXES else name
        if not neuroshapes:
            return f"{self.base}/vocabs/{self.project}/{name}"
        if name in _PROV:
            return _PREFIXES["prov"] + name
        return (_PREFIXES["schema"] if name in _SCHEMA_ORG else _PREFIXES["nsg"]) + name


def listed(value: Any) -> list[str]:
    """A JSON-LD value that may be one string, several, or absent."""
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, Sequence) else []


def one_or_many(values: list[str]) -> str | list[str]:
    """The way back."""
    return values[0] if len(values) == 1 else values


def _contexts(payload: dict[str, Any]) -> list[str]:
    return listed(payload.get("@context"))
