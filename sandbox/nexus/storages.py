"""``/v1/storages``: where files can be kept."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from sandbox.nexus.delta import Delta, json_object, show, write
from sandbox.nexus.errors import Refused
from sandbox.nexus.iris import NXV
from sandbox.nexus.resources import listing, shown
from sandbox.nexus.store import Revision

DEFAULT = f"{NXV}diskStorageDefault"
_KINDS = {"DiskStorage": "volume", "S3Storage": "bucket"}
_ONE = "/v1/storages/{org}/{project}/{iri}"


def s3_storage_id(bucket: str) -> str:
    """The id of the storage that the double makes for a bucket at its start."""
    return f"https://bbp.epfl.ch/nexus/v1/storages/s3/{bucket}"


def make_defaults(delta: Delta, buckets: list[str]) -> None:
    """The storages that exist from the start: a disk, which is the default, and one for each bucket."""
    by = f"{delta.names.base}/realms/internal/users/delta"
    wanted: dict[str, dict[str, Any]] = {
        DEFAULT: {"@type": "DiskStorage", "name": "Default Disk", "default": True, "volume": str(delta.volume)}
    }
    for bucket in buckets:
        source = {"@type": "S3Storage", "name": f"S3 {bucket}", "default": False, "bucket": bucket}
        wanted[s3_storage_id(bucket)] = source
    for id_, source in wanted.items():
        if delta.store.find(id_) is None:
            delta.store.create("storage", id_, "", _complete(source), {}, by)


def chosen(delta: Delta, segment: str | None) -> Revision:
    """The storage that a request names, or the default one.

    Raises:
        Refused: StorageNotFound, StorageIsDeprecated or DefaultStorageNotFound.
    """
    if segment is None:
        for each in delta.store.newest("storage"):
            if each.source.get("default") and not each.deprecated:
                return each
        raise Refused(404, "DefaultStorageNotFound", f"Project '{delta.names.project}' has no default storage.")
    found = delta.store.fetch("storage", delta.names.id(segment))
    if found.deprecated:
        raise Refused(400, "StorageIsDeprecated", f"Storage '{found.id}' is deprecated.")
    return found


def routes(delta: Delta) -> APIRouter:
    """The routes, for :func:`sandbox.nexus.app.create_app`."""
    router = APIRouter()

    async def make(request: Request, org: str, project: str, iri: str | None) -> Response:
        body = await json_object(request)

        def do() -> Response:
            by = delta.writer(request, org, project, "storages/write").iri(delta.names.base)
            kind = str(body.get("@type"))
            if kind not in _KINDS or not isinstance(body.get(_KINDS[kind]), str):
                reason = f"A storage is one of {sorted(_KINDS)} with its volume or bucket."
                raise Refused(400, "InvalidStorageType", reason)
            id_ = delta.names.id(iri or body["@id"]) if iri or "@id" in body else delta.names.new_id()
            source = _complete({name: value for name, value in body.items() if name != "@id"})
            rev = request.query_params.get("rev", "")
            if rev.isdigit():
                return show(delta, delta.store.change("storage", id_, int(rev), by, source=source))
            return show(delta, delta.store.create("storage", id_, "", source, {}, by), 201)

        return await run_in_threadpool(write, delta, do)

    @router.post("/v1/storages/{org}/{project}")
    async def create(request: Request, org: str, project: str) -> Response:
        return await make(request, org, project, None)

    @router.put(_ONE)
    async def put(request: Request, org: str, project: str, iri: str) -> Response:
        return await make(request, org, project, iri)

    @router.get("/v1/storages/{org}/{project}")
    def every(request: Request, org: str, project: str) -> Response:
        delta.reader(request, org, project)
        return listing(delta, request, delta.store.newest("storage"))

    @router.get(_ONE)
    def fetch(request: Request, org: str, project: str, iri: str) -> Response:
        delta.reader(request, org, project)
        return shown(delta, request, delta.store.fetch("storage", delta.names.id(iri)))

    @router.delete(_ONE)
    def deprecate(request: Request, org: str, project: str, iri: str, rev: int) -> Response:
        by = delta.writer(request, org, project, "storages/write").iri(delta.names.base)
        id_ = delta.names.id(iri)
        return write(delta, lambda: show(delta, delta.store.change("storage", id_, rev, by, deprecated=True)))

    return router


def _complete(source: dict[str, Any]) -> dict[str, Any]:
    permissions = {"readPermission": "resources/read", "writePermission": "files/write"}
    return {"default": False, "maxFileSize": 10 * 1024**3} | permissions | source
