"""``/v1/resources``: create, update, fetch, tag, deprecate and list; ``/v1/resolvers`` and ``/v1/resolve``."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from sandbox.nexus.delta import Delta, json_ld, json_object, show, write
from sandbox.nexus.errors import Refused
from sandbox.nexus.iris import METADATA_CONTEXT, NXV, SCHEMAS, listed
from sandbox.nexus.store import Revision

_ONE = "/v1/resources/{org}/{project}/{schema}/{iri}"


def routes(delta: Delta) -> APIRouter:
    """The routes, for :func:`sandbox.nexus.app.create_app`."""
    router = APIRouter()
    _add_writes(router, delta)
    _add_deprecation(router, delta)
    _add_reads(router, delta)
    return router


def _add_writes(router: APIRouter, delta: Delta) -> None:
    async def store(
        request: Request, org: str, project: str, schema: str, id_: str | None, rev: int | None
    ) -> Response:
        payload = await json_object(request)
        return await run_in_threadpool(_store, delta, request, (org, project), schema, id_, rev, payload)

    @router.post("/v1/resources/{org}/{project}")
    async def create_unconstrained(request: Request, org: str, project: str) -> Response:
        _without_rev(request)
        return await store(request, org, project, "_", None, None)

    @router.post("/v1/resources/{org}/{project}/{schema}")
    async def create(request: Request, org: str, project: str, schema: str) -> Response:
        _without_rev(request)
        return await store(request, org, project, schema, None, None)

    @router.put(_ONE)
    async def put(request: Request, org: str, project: str, schema: str, iri: str, rev: int | None = None) -> Response:
        return await store(request, org, project, schema, iri, rev)

    @router.post(f"{_ONE}/tags")
    async def tag(request: Request, org: str, project: str, iri: str, rev: int) -> Response:
        body = await json_object(request)

        def do() -> Response:
            caller = delta.writer(request, org, project)
            wanted = (str(body.get("tag", "")), int(body.get("rev", rev)))
            by = caller.iri(delta.names.base)
            return show(delta, delta.store.change("resource", delta.names.id(iri), rev, by, tag=wanted), 201)

        return await run_in_threadpool(write, delta, do)


def _store(
    delta: Delta,
    request: Request,
    where: tuple[str, str],
    schema_segment: str,
    segment: str | None,
    rev: int | None,
    payload: dict[str, Any],
) -> Response:
    caller = delta.writer(request, *where)
    schema = delta.names.schema(schema_segment)
    id_ = delta.names.id(segment) if segment is not None else None
    stated = delta.names.id(payload["@id"]) if isinstance(payload.get("@id"), str) else None
    if id_ and stated and id_ != stated:
        reason = f"Resource '{id_}' does not match the id on payload '{stated}'."
        raise Refused(400, "UnexpectedResourceId", reason)
    id_ = id_ or stated or delta.names.new_id()
    _check(delta, id_, schema, payload)
    by = caller.iri(delta.names.base)

    def do() -> Response:
        if rev is None:
            return show(delta, delta.store.create("resource", id_, schema or "", payload, {}, by), 201)
        return show(delta, delta.store.change("resource", id_, rev, by, schema=schema, source=payload))

    return write(delta, do)


def _check(delta: Delta, id_: str, schema: str | None, payload: dict[str, Any]) -> None:
    """Raises Refused for a payload that Delta would not take."""
    reserved = sorted(name for name in payload if name.startswith("_"))
    if reserved:
        reason = f"Fields {', '.join(reserved)} are reserved: root fields may not start with '_'."
        raise Refused(400, "MalformedRequestContentRejection", reason)
    if id_.startswith(NXV):
        raise Refused(400, "ReservedResourceId", f"Resource identifier '{id_}' is reserved by the platform.")
    types = delta.names.types(payload)
    if taken := [each for each in types if each.startswith(NXV)]:
        raise Refused(400, "ReservedResourceTypes", f"Types {taken} are reserved for system resources.")
    target = SCHEMAS.get(schema or "", "")
    if target and not any(each.rsplit("/", 1)[-1].rsplit("#", 1)[-1] == target for each in types):
        reason = f"Resource '{id_}' could not be validated: no node of it is targeted by the schema '{schema}'."
        raise Refused(400, "NoTargetedNode", reason)


def _add_deprecation(router: APIRouter, delta: Delta) -> None:
    @router.delete(_ONE)
    def deprecate(request: Request, org: str, project: str, iri: str, rev: int) -> Response:
        return switch(request, (org, project), iri, rev, True)

    @router.put(f"{_ONE}/undeprecate")
    def undeprecate(request: Request, org: str, project: str, iri: str, rev: int) -> Response:
        return switch(request, (org, project), iri, rev, False)

    def switch(request: Request, where: tuple[str, str], segment: str, rev: int, deprecated: bool) -> Response:
        caller = delta.writer(request, *where)
        by, id_ = caller.iri(delta.names.base), delta.names.id(segment)
        return write(delta, lambda: show(delta, delta.store.change("resource", id_, rev, by, deprecated=deprecated)))


def _add_reads(router: APIRouter, delta: Delta) -> None:
    @router.get("/v1/resources/{org}/{project}")
    def every(request: Request, org: str, project: str) -> Response:
        delta.reader(request, org, project)
        return listing(delta, request, delta.store.newest())

    @router.get("/v1/resources/{org}/{project}/{schema}")
    def of_schema(request: Request, org: str, project: str, schema: str) -> Response:
        delta.reader(request, org, project)
        wanted = delta.names.schema(schema)
        found = [each for each in delta.store.newest() if wanted is None or each.schema == wanted]
        return listing(delta, request, found)

    def one(request: Request, org: str, project: str, schema: str, segment: str) -> Revision:
        delta.reader(request, org, project)
        rev, tag = request.query_params.get("rev"), request.query_params.get("tag")
        if rev is not None and tag is not None:
            raise Refused(400, "MalformedQueryParam", "'tag' and 'rev' query parameters cannot be present at once.")
        number = None
        if rev is not None:
            if not rev.isdigit():
                raise Refused(400, "MalformedQueryParam", "The query parameter 'rev' was malformed.")
            number = int(rev)
        id_ = delta.names.id(segment)
        found = delta.store.fetch("", id_, rev=number, tag=tag)
        wanted = delta.names.schema(schema)
        if wanted is not None and found.schema != wanted:
            reason = f"Resource '{id_}' is not constrained by schema '{wanted}'."
            raise Refused(404, "ResourceNotFound", reason)
        return found

    @router.get(_ONE)
    def fetch(request: Request, org: str, project: str, schema: str, iri: str) -> Response:
        return shown(delta, request, one(request, org, project, schema, iri))

    @router.get(f"{_ONE}/source")
    def source(request: Request, org: str, project: str, schema: str, iri: str) -> Response:
        return json_ld(one(request, org, project, schema, iri).source)

    @router.get(f"{_ONE}/tags")
    def tags(request: Request, org: str, project: str, schema: str, iri: str) -> Response:
        found = one(request, org, project, schema, iri)
        known = [{"tag": name, "rev": rev} for name, rev in delta.store.tags(found.id)]
        return json_ld({"@context": METADATA_CONTEXT, "tags": known})

    @router.get("/v1/resolvers/{org}/{project}/{resolver}/{iri}")
    def resolve_here(request: Request, org: str, project: str, iri: str) -> Response:
        return shown(delta, request, one(request, org, project, "_", iri))

    @router.get("/v1/resolve/{iri}")
    def resolve(request: Request, iri: str) -> Response:
        return shown(delta, request, one(request, delta.names.org, delta.names.name, "_", iri))


def shown(delta: Delta, request: Request, found: Revision) -> Response:
    """An entity in full: the payload as it was sent, and the metadata."""
    tag = f'"{hashlib.sha256(f"{found.id} {found.rev}".encode()).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    metadata = delta.metadata(found)
    if found.kind != "resource":
        return json_ld({"@context": METADATA_CONTEXT, **metadata}, headers={"ETag": tag})
    context = found.source.get("@context")
    body = {
        **found.source,
        "@context": [*(context if isinstance(context, list) else [context] if context else []), METADATA_CONTEXT],
        "@id": found.id,
        **{name: value for name, value in metadata.items() if name.startswith("_")},
    }
    return json_ld(body, headers={"ETag": tag})


def listing(delta: Delta, request: Request, found: list[Revision]) -> Response:
    """One page of metadata, filtered by ``type`` and ``deprecated``; ``from`` and ``size`` page."""
    asked = request.query_params
    start, size = _number(asked.get("from"), 0), _number(asked.get("size"), 30)
    wanted = asked.getlist("type")
    if "deprecated" in asked:
        found = [each for each in found if each.deprecated == (asked["deprecated"] == "true")]
    for each_type in wanted:
        found = [each for each in found if _is(delta, each, each_type)]
    body: dict[str, Any] = {
        "@context": [METADATA_CONTEXT, "https://bluebrain.github.io/nexus/contexts/search.json"],
        "_total": len(found),
        "_results": [delta.metadata(each) for each in found[start : start + size]],
    }
    if start + size < len(found):
        others = [(name, value) for name, value in asked.multi_items() if name not in ("from", "size")]
        query = urlencode([*others, ("from", start + size), ("size", size)])
        body["_next"] = f"{delta.names.base}{request.url.path.removeprefix('/v1')}?{query}"
    return json_ld(body)


def _is(delta: Delta, each: Revision, wanted: str) -> bool:
    types = listed(delta.metadata(each).get("@type"))
    short = {name.rsplit("/", 1)[-1].rsplit("#", 1)[-1] for name in types}
    return wanted in types or wanted in short or (wanted.partition(":")[0] == "nxv" and wanted[4:] in short)


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdigit():
        raise Refused(400, "MalformedQueryParam", f"The query parameter '{text}' is no number.")
    return min(int(text), 10_000)


def _without_rev(request: Request) -> None:
    if "rev" in request.query_params:  # the route is not matched with a revision
        raise Refused(404, "ResourceNotFound", "The requested resource does not exist.")
