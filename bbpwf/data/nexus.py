"""A client of Nexus Delta for results: resources and files under ids that the client chooses.

Because the id is known before anything is sent, whatever was cut off can be sent again: a create that meets
itself is a success, an update that meets another's is made anew on what it finds.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.data.delta import DeltaSession, Upload
from bbpwf.errors import InvalidInput, NexusError
from bbpwf.settings import NexusSettings

_UPDATES = 5  # tries against others who update the same resource
_PAGE = 100


@dataclass(frozen=True)
class Resource:
    """A resource or file as Delta answers it. ``body`` is everything that it said.

    The answer to a write holds metadata only; ``body`` then lacks the payload.
    """

    id: str
    rev: int
    self_url: str
    deprecated: bool
    body: Mapping[str, Any] = field(repr=False)

    @property
    def digest(self) -> tuple[str, str]:
        """Algorithm and hex value of a file; both empty when Delta has none, as for most linked objects."""
        digest = self.body.get("_digest") or {}
        value = str(digest.get("_value") or "")
        return (str(digest.get("_algorithm") or "SHA-256"), value) if value else ("", "")


@dataclass(frozen=True)
class Content:
    """Bytes to upload: ``size`` of them from every call of ``open``."""

    size: int
    open: Callable[[], Iterator[bytes]]

    @classmethod
    def of(cls, data: bytes) -> Content:
        """Bytes that are at hand."""
        return cls(len(data), lambda: iter((data,)))

    def sha256(self) -> str:
        """Hex digest."""
        digest = hashlib.sha256()
        for piece in self.open():
            digest.update(piece)
        return digest.hexdigest()


class NexusClient:
    """Resources and files of one Nexus project. Use from one thread at a time.

    Args:
        settings: URL, organisation and project, and the storage for files.
        token: answers a valid access token; called before every request.
        clock: time.

    Every method raises NexusError when Delta refuses or cannot be reached; ``status`` and ``kind`` say how.
    """

    def __init__(self, settings: NexusSettings, token: Callable[[], SecretStr], clock: Clock) -> None:
        self._delta = DeltaSession(settings, token, clock)
        self._storage = settings.storage_id
        self._bucket: str | None = None
        self._links_legacy = False

    def close(self) -> None:
        """Let go of the connections."""
        self._delta.close()

    @property
    def id_base(self) -> str:
        """The namespace of the project's own ids; ends in ``/``."""
        return f"{self._delta.base}/resources/{self._delta.org}/{self._delta.project}/_/"

    # -- resources -----------------------------------------------------------------------------------------

    def fetch(self, id_: str, *, rev: int | None = None, tag: str = "") -> Resource | None:
        """A resource in full, or ``None`` when there is no such id, revision or tag."""
        params = {"rev": str(rev)} if rev is not None else {"tag": tag} if tag else {}
        return self._find(self._delta.url("resources", "_", id_), params)

    def source(self, id_: str, *, rev: int | None = None) -> dict[str, Any] | None:
        """The payload as it was sent, without what Delta added; ``None`` when there is no such id."""
        params = {"rev": str(rev)} if rev is not None else {}
        try:
            return self._delta.call("GET", f"{self._delta.url('resources', '_', id_)}/source", params=params)
        except NexusError as error:
            if error.status == 404:
                return None
            raise

    def create(self, id_: str, payload: Mapping[str, Any], *, schema: str = "_") -> Resource:
        """Make a resource. Making the same one again is a success.

        Raises:
            NexusError: kind ``ResourceAlreadyExists`` if one of that id holds something else.
        """
        url = self._delta.url("resources", schema, id_)
        try:
            return _resource(self._delta.call("PUT", url, payload=_own(payload)))
        except NexusError as error:
            if error.kind != "ResourceAlreadyExists":
                raise
            known = self.fetch(id_)
            if known is None or not _same(self.source(id_, rev=known.rev), payload):
                raise
            return known

    def update(self, id_: str, change: Callable[[dict[str, Any]], Mapping[str, Any]], *, schema: str = "_") -> Resource:
        """Replace the payload by what ``change`` makes of it; again, if somebody was quicker.

        ``change`` gets a copy that it may alter; it may be called several times. A change that changes nothing
        sends nothing.

        Raises:
            NexusError: kind ``IncorrectRev`` if others were quicker every time; 404 if there is no such id.
        """

        def once() -> Resource:
            known = self.fetch(id_)
            found = None if known is None else self.source(id_, rev=known.rev)
            if known is None or found is None:
                raise NexusError(f"there is no resource {id_} to update", status=404, kind="ResourceNotFound")
            wanted = change(json.loads(json.dumps(found)))
            if _same(found, wanted):
                return known
            url = self._delta.url("resources", schema, id_)
            return _resource(self._delta.call("PUT", url, params={"rev": str(known.rev)}, payload=_own(wanted)))

        return _against_others(once)

    def publish(self, id_: str, payload: Mapping[str, Any], *, schema: str = "_") -> Resource:
        """Make the resource, or bring the one that exists up to ``payload``.

        Fields that others added stay; a field that is ``None`` goes. Doing it again changes nothing, not even
        the revision.
        """
        try:
            return self.create(id_, _filled(payload), schema=schema)
        except NexusError as error:
            if error.kind != "ResourceAlreadyExists":
                raise
        return self.update(id_, lambda found: _filled({**found, **payload}), schema=schema)

    def deprecate(self, id_: str) -> Resource:
        """Mark a resource as no longer to be used; a deprecated one stays so."""

        def once() -> Resource:
            known = self.fetch(id_)
            if known is None:
                raise NexusError(f"there is no resource {id_} to deprecate", status=404, kind="ResourceNotFound")
            if known.deprecated:
                return known
            url = self._delta.url("resources", "_", id_)
            return _resource(self._delta.call("DELETE", url, params={"rev": str(known.rev)}))

        return _against_others(once)

    def listing(self, type_: str = "") -> Iterator[Resource]:
        """Metadata of the project's resources that are in use, by pages; of one type, given as its full IRI."""
        start = 0
        while True:
            params = {"from": str(start), "size": str(_PAGE), "deprecated": "false"}
            if type_:
                params["type"] = type_
            page = self._delta.call("GET", self._delta.url("resources"), params=params)
            results = page.get("_results", [])
            yield from (_resource(each) for each in results)
            start += len(results)
            if not results or start >= int(page.get("_total", 0)):
                return

    def storage_bucket(self) -> str:
        """The S3 bucket of the configured storage; empty when none is configured, or it is not on S3."""
        if not self._storage:
            return ""
        if self._bucket is None:
            answer = self._delta.call("GET", self._delta.url("storages", self._storage))
            self._bucket = str(answer.get("bucket", ""))
        return self._bucket

    # -- files ---------------------------------------------------------------------------------------------

    def file(self, id_: str) -> Resource | None:
        """Metadata of a file, ``None`` when there is no such id."""
        return self._find(self._delta.url("files", id_), {})

    def upload(self, id_: str, content: Content, *, filename: str, media_type: str) -> Resource:
        """Put bytes into the project's storage. The same bytes again are a success; others make a new revision."""

        def send(params: dict[str, str]) -> dict[str, Any]:
            body, kind = _multipart(content, filename, media_type)
            headers = {"Content-Type": kind, "x-nxs-file-content-length": str(content.size)}
            return self._delta.call("PUT", self._delta.url("files", id_), params=params, upload=body, headers=headers)

        def same(known: Resource) -> bool:
            algorithm, value = known.digest
            return known.body.get("_bytes") == content.size and algorithm == "SHA-256" and value == content.sha256()

        return self._put_file(id_, send, same)

    def link(self, id_: str, key: str, *, size: int, media_type: str = "") -> Resource:
        """Register an object that is in the storage's bucket as a file, without copying it.

        The object must exist: Delta answers a missing one by an internal error. ``size``, in bytes, tells a link
        that exists already from one to an older object of the same key.
        """

        def send(params: dict[str, str]) -> dict[str, Any]:
            body = {"path": key, **({"mediaType": media_type} if media_type else {})}
            if not self._links_legacy:
                try:
                    return self._delta.call("PUT", self._delta.url("link/files", id_), params=params, payload=body)
                except NexusError as error:
                    if error.status not in (404, 405, 415):
                        raise
                    refused = error
            try:  # Delta ≤ 1.10
                legacy = {**body, "filename": key.rsplit("/", 1)[-1]}
                answer = self._delta.call("PUT", self._delta.url("files", id_), params=params, payload=legacy)
            except NexusError as error:
                if self._links_legacy or error.status not in (404, 405, 415):
                    raise
                raise refused from error  # neither way exists, or the storage does not: the first word is the clearer
            self._links_legacy = True
            return answer

        def same(known: Resource) -> bool:
            location = str(known.body.get("_location") or key)
            return known.body.get("_bytes") == size and location.lstrip("/") == key.lstrip("/")

        return self._put_file(id_, send, same)

    def _put_file(
        self, id_: str, send: Callable[[dict[str, str]], dict[str, Any]], same: Callable[[Resource], bool]
    ) -> Resource:
        """Create the file, or find it as it should be, or make its next revision."""
        storage = {"storage": self._storage} if self._storage else {}
        try:
            return _resource(send(storage))
        except NexusError as error:
            if error.kind != "ResourceAlreadyExists":
                raise

        def once() -> Resource:
            known = self.file(id_)
            if known is None:
                raise NexusError(f"{id_} exists, but is not a file", status=409, kind="ResourceAlreadyExists")
            return known if same(known) else _resource(send({**storage, "rev": str(known.rev)}))

        return _against_others(once)

    def _find(self, url: str, params: Mapping[str, str]) -> Resource | None:
        try:
            return _resource(self._delta.call("GET", url, params=params))
        except NexusError as error:
            if error.status == 404 and error.kind != "ProjectNotFound":
                return None
            raise


def _against_others(once: Callable[[], Resource]) -> Resource:
    """Read, change and write, again from the start whenever somebody else wrote in between."""
    for _ in range(_UPDATES - 1):
        try:
            return once()
        except NexusError as error:
            if error.kind != "IncorrectRev":
                raise
    return once()


def _resource(body: dict[str, Any]) -> Resource:
    try:
        return Resource(
            id=str(body["@id"]),
            rev=int(body["_rev"]),
            self_url=str(body["_self"]),
            deprecated=bool(body.get("_deprecated", False)),
            body=body,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NexusError(f"Nexus answered no resource: {type(error).__name__} {error}") from error


def _own(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload without system attributes, which Delta reserves, and the id, which is in the URL."""
    return {name: value for name, value in payload.items() if not name.startswith("_") and name != "@id"}


def _filled(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if value is not None}


def _same(found: Mapping[str, Any] | None, payload: Mapping[str, Any]) -> bool:
    return found is not None and _own(found) == json.loads(json.dumps(_own(payload)))


def _multipart(content: Content, filename: str, media_type: str) -> tuple[Upload, str]:
    """One part named ``file``, streamed; and the Content-Type that goes with it."""
    if not media_type.isprintable():
        raise InvalidInput(f"{media_type!r} is no media type")
    boundary = uuid.uuid4().hex
    # a quoted string of RFC 9110: servers undo the backslashes; a line break has no place in a header
    name = "".join(f"\\{each}" if each in '\\"' else each if each.isprintable() else "_" for each in filename)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def pieces() -> Iterator[bytes]:
        yield head
        yield from content.open()
        yield tail

    return Upload(len(head) + content.size + len(tail), pieces), f"multipart/form-data; boundary={boundary}"
