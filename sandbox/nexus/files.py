"""``/v1/files`` and ``/v1/link/files``: uploads, links to S3 objects, contents and metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from sandbox.nexus import contents
from sandbox.nexus.delta import Delta, json_ld, json_object, show, write
from sandbox.nexus.errors import Refused
from sandbox.nexus.iris import METADATA_CONTEXT
from sandbox.nexus.resources import shown
from sandbox.nexus.storages import chosen
from sandbox.nexus.store import Revision

_RDF = {"application/ld+json", "application/n-triples", "application/n-quads", "text/vnd.graphviz"}
_ONE = "/v1/files/{org}/{project}/{iri}"
_LINK = "/v1/link/files/{org}/{project}"
Keep = Callable[[Revision], dict[str, Any]]
"""Takes the storage, keeps the bytes there, answers the file's attributes."""


def routes(delta: Delta) -> APIRouter:
    """The routes, for :func:`sandbox.nexus.app.create_app`."""
    router = APIRouter()
    _add_uploads(router, delta)
    _add_links(router, delta)
    _add_others(router, delta)
    return router


def _add_uploads(router: APIRouter, delta: Delta) -> None:
    async def upload(request: Request, org: str, project: str, iri: str | None) -> Response:
        described = _described(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind == "application/json" and delta.panel.now.generation != "1.11":
            body = await json_object(request)
            return await run_in_threadpool(_keep, delta, request, (org, project), iri, _linked(delta, body, "Storage"))
        if kind != "multipart/form-data":
            if iri is not None and "rev" in request.query_params and described:
                return await run_in_threadpool(_redescribe, delta, request, (org, project), iri, described)
            reason = "The request's Content-Type is not supported. Expected: multipart/form-data"
            raise Refused(415, "UnsupportedMediaType", reason)
        async with request.form() as form:
            part = form.get("file")
            if part is None:
                reason = "Multipart field 'file' expected."
                raise Refused(400, "InvalidMultipartFieldName", reason)
            content: BinaryIO
            if isinstance(part, UploadFile):
                content, name, media_type = part.file, part.filename or "file", part.content_type
            else:
                content, name, media_type = BytesIO(part.encode()), "file", "text/plain"
            announced = request.headers.get("x-nxs-file-content-length")

            def keep(storage: Revision) -> dict[str, Any]:
                saved = contents.save(
                    delta, storage, content, name, media_type or "application/octet-stream", announced
                )
                return saved | described

            return await run_in_threadpool(_keep, delta, request, (org, project), iri, keep)

    @router.post("/v1/files/{org}/{project}")
    async def create(request: Request, org: str, project: str) -> Response:
        return await upload(request, org, project, None)

    @router.put(_ONE)
    async def put(request: Request, org: str, project: str, iri: str) -> Response:
        return await upload(request, org, project, iri)


def _add_links(router: APIRouter, delta: Delta) -> None:
    async def make(request: Request, org: str, project: str, iri: str | None) -> Response:
        if delta.panel.now.generation == "1.9":
            raise Refused(404, "ResourceNotFound", "The requested resource does not exist.")
        body = await json_object(request)
        return await run_in_threadpool(_keep, delta, request, (org, project), iri, _linked(delta, body, "Link"))

    @router.post(_LINK)
    async def create(request: Request, org: str, project: str) -> Response:
        return await make(request, org, project, None)

    @router.put(f"{_LINK}/{{iri}}")
    async def put(request: Request, org: str, project: str, iri: str) -> Response:
        return await make(request, org, project, iri)


def _add_others(router: APIRouter, delta: Delta) -> None:
    def one(request: Request, org: str, project: str, segment: str) -> Revision:
        delta.reader(request, org, project)
        return delta.store.fetch(
            "file", delta.names.id(segment), rev=_rev(request), tag=request.query_params.get("tag")
        )

    @router.get(_ONE)
    def fetch(request: Request, org: str, project: str, iri: str) -> Response:
        found = one(request, org, project, iri)
        if request.headers.get("accept", "*/*").strip() in _RDF:
            return shown(delta, request, found)
        name = quote(found.attributes["filename"])
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Content-Length": str(found.attributes["bytes"]),
        }
        media_type = found.attributes["media_type"]
        return StreamingResponse(contents.read(delta, found), headers=headers, media_type=media_type)

    @router.delete(_ONE)
    def deprecate(request: Request, org: str, project: str, iri: str, rev: int) -> Response:
        by = delta.writer(request, org, project, "files/write").iri(delta.names.base)
        id_ = delta.names.id(iri)
        return write(delta, lambda: show(delta, delta.store.change("file", id_, rev, by, deprecated=True)))

    @router.post(f"{_ONE}/tags")
    async def tag(request: Request, org: str, project: str, iri: str, rev: int) -> Response:
        body = await json_object(request)

        def do() -> Response:
            by = delta.writer(request, org, project, "files/write").iri(delta.names.base)
            wanted = (str(body.get("tag", "")), int(body.get("rev", rev)))
            return show(delta, delta.store.change("file", delta.names.id(iri), rev, by, tag=wanted), 201)

        return await run_in_threadpool(write, delta, do)

    @router.get(f"{_ONE}/tags")
    def tags(request: Request, org: str, project: str, iri: str) -> Response:
        found = one(request, org, project, iri)
        known = [{"tag": name, "rev": rev} for name, rev in delta.store.tags(found.id)]
        return json_ld({"@context": METADATA_CONTEXT, "tags": known})


def _keep(delta: Delta, request: Request, where: tuple[str, str], segment: str | None, keep: Keep) -> Response:
    """Create a file, or its next revision when there is ``?rev=``."""
    caller = delta.writer(request, *where, "files/write")
    by, rev = caller.iri(delta.names.base), _rev(request)
    id_ = delta.names.id(segment) if segment is not None else delta.names.new_id()
    known = delta.store.find(id_)
    if rev is None and known is not None:
        raise Refused(409, "ResourceAlreadyExists", f"Resource '{id_}' already exists in project '{where[1]}'.")
    storage = chosen(delta, request.query_params.get("storage"))
    attributes = keep(storage)

    def do() -> Response:
        if rev is None:
            return show(delta, delta.store.create("file", id_, "", {}, attributes, by), 201)
        return show(delta, delta.store.change("file", id_, rev, by, attributes=attributes))

    return write(delta, do)


def _redescribe(
    delta: Delta, request: Request, where: tuple[str, str], segment: str, described: dict[str, Any]
) -> Response:
    by, rev = delta.writer(request, *where, "files/write").iri(delta.names.base), _rev(request)
    id_ = delta.names.id(segment)
    attributes = delta.store.fetch("file", id_).attributes | described
    return write(delta, lambda: show(delta, delta.store.change("file", id_, rev or 0, by, attributes=attributes)))


def _linked(delta: Delta, body: dict[str, Any], origin: str) -> Keep:
    path = body.get("path")
    if not isinstance(path, str):
        raise Refused(400, "MalformedRequestContentRejection", "The request content was malformed: no field 'path'.")
    filename = str(body.get("filename") or "") if origin == "Storage" else ""
    media_type = str(body.get("mediaType") or "")
    described = _metadata(body.get("metadata") or {})
    return lambda storage: contents.link(delta, storage, path, filename, media_type, origin) | described


def _described(request: Request) -> dict[str, Any]:
    header = request.headers.get("x-nxs-file-metadata")
    if header is None:
        return {}
    try:
        return _metadata(json.loads(header))
    except ValueError as error:
        reason = f"The value of HTTP header 'x-nxs-file-metadata' was malformed: {error}"
        raise Refused(400, "MalformedHeaderRejection", reason) from error


def _metadata(given: Any) -> dict[str, Any]:
    known = ("name", "description", "keywords")
    return {name: given[name] for name in known if name in given} if isinstance(given, dict) else {}


def _rev(request: Request) -> int | None:
    text = request.query_params.get("rev")
    if text is not None and not text.isdigit():
        raise Refused(400, "MalformedQueryParam", "The query parameter 'rev' was malformed.")
    return None if text is None else int(text)
