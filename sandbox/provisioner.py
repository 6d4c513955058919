"""A double of the HPC resource provisioner: API Gateway, its lambda, and clusters that take their time.

``python -m sandbox.provisioner --port N --state DIR --aws-endpoint URL --sim-key F --admin-key F --head-node IP``
serves ``http://127.0.0.1:N/production/hpc-provisioner``. Behaviour and traps as ``contracts.md`` §1 gives them;
faults by ``/_faults``, see :class:`sandbox.provisioner_clusters.ProvisionerFaults`. Signatures are recomputed with
``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` if the environment has them, else only their form is checked.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from bbpwf.clock import Clock, SystemClock
from sandbox.double import Panel, install, serve
from sandbox.provisioner_clusters import REGION, VERSION, Clusters, ProvisionerFaults, Timing
from sandbox.sigv4 import Forbidden, Verifier
from sandbox.sigv4 import Request as SignedRequest

PATH = "/production/hpc-provisioner"
_CRASHED = {"message": "Internal server error"}


def create_app(clusters: Clusters, verifier: Verifier, clock: Clock) -> FastAPI:
    """The provisioner as an application."""
    app = FastAPI(title="HPC resource provisioner double", openapi_url=None)
    panel = Panel(ProvisionerFaults)
    install(app, panel)

    @app.exception_handler(Forbidden)
    async def forbidden(_: Request, error: Forbidden) -> Response:
        return JSONResponse({"message": str(error)}, 403)

    def pcluster(request: Request) -> Response:
        _check(request, verifier, clock)
        faults = panel.now
        if faults.throttle_next:
            panel.turn({"throttle_next": faults.throttle_next - 1})
            return JSONResponse({"message": "Too Many Requests"}, 429)
        if faults.crash_next:
            panel.turn({"crash_next": faults.crash_next - 1})
            return JSONResponse(_CRASHED, 502)
        query = dict(parse_qsl(request.url.query))
        answer = _lambda(request.method, query, clusters, faults)
        if faults.timeout_next:
            panel.turn({"timeout_next": faults.timeout_next - 1})
            return JSONResponse({"message": "Endpoint request timed out"}, 504)
        return answer

    def version(request: Request) -> Response:
        _check(request, verifier, clock)
        return PlainTextResponse("0.1.0") if panel.now.plain_text else JSONResponse({"version": "0.1.0"})

    def elsewhere() -> Response:
        return JSONResponse({"message": "Missing Authentication Token"}, 403)

    app.add_api_route(f"{PATH}/pcluster", pcluster, methods=["GET", "POST", "DELETE"])
    app.add_api_route(f"{PATH}/version", version, methods=["GET"])
    # API Gateway knows four routes; for anything else it speaks of a token (contracts §1.1)
    every = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    app.add_api_route("/{path:path}", elsewhere, methods=every)
    return app


def _check(request: Request, verifier: Verifier, clock: Clock) -> None:
    headers = {name.lower(): value for name, value in request.headers.items()}
    path = request.scope["raw_path"].decode("ascii", "replace")
    verifier.check(SignedRequest(request.method, path, request.url.query, headers), clock.now())


def _lambda(method: str, query: dict[str, str], clusters: Clusters, faults: ProvisionerFaults) -> Response:
    vlab_id, project_id = query.get("vlab_id", ""), query.get("project_id", "")
    both = bool(vlab_id and project_id)
    if method != "GET" and not both:
        return JSONResponse(_CRASHED, 502)
    if method == "POST":
        return JSONResponse({"cluster": clusters.ask(vlab_id, project_id, query, faults)})
    gone = (
        f"Cluster 'pcluster-{vlab_id}-{project_id}' does not exist or belongs to an incompatible ParallelCluster "
        "major version."
    )
    if method == "DELETE":
        try:
            summary = clusters.delete(vlab_id, project_id, faults)
        except (ClientError, BotoCoreError) as error:
            return PlainTextResponse(f"<class 'botocore.errorfactory.{_kind(error)}'>", 500)
        return PlainTextResponse(gone, 404) if summary is None else JSONResponse({"cluster": summary})
    if not both:
        return JSONResponse({"clusters": clusters.summaries(faults)})
    if faults.describe_error:
        return _failure(f"<class '{faults.describe_error}'>", 500, faults)
    found: dict[str, Any] | None = clusters.describe(vlab_id, project_id, faults)
    return _failure(gone, 404, faults) if found is None else JSONResponse(found)


def _failure(text: str, status: int, faults: ProvisionerFaults) -> Response:
    return PlainTextResponse(text, status) if faults.plain_text else JSONResponse({"message": text}, status)


def _kind(error: ClientError | BotoCoreError) -> str:
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else type(error).__name__


def main() -> None:
    """Serve the provisioner until told to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.provisioner", description=f"The sandbox's provisioner (ParallelCluster {VERSION})."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="folder in which clusters are remembered")
    parser.add_argument("--aws-endpoint", required=True, help="where Secrets Manager is")
    parser.add_argument("--sim-key", type=Path, required=True, help="PEM of the ordinary user's private key")
    parser.add_argument("--admin-key", type=Path, required=True, help="PEM of the administrator's private key")
    parser.add_argument("--head-node", default="127.0.0.1", help="address that describe answers")
    parser.add_argument("--absent-seconds", type=float, default=2.0, help="404 after a POST")
    parser.add_argument("--create-seconds", type=float, default=3.0, help="from the first sight to CREATE_COMPLETE")
    parser.add_argument("--delete-seconds", type=float, default=2.0, help="DELETE_IN_PROGRESS")
    options = parser.parse_args()
    manager = boto3.client(
        "secretsmanager",
        region_name=REGION,
        endpoint_url=options.aws_endpoint,
        config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}),
    )
    timing = Timing(options.absent_seconds, options.create_seconds, options.delete_seconds)
    keys = {"_sim": options.sim_key.read_text(), "": options.admin_key.read_text()}
    clock = SystemClock()
    clusters = Clusters(options.state / "clusters.json", timing, clock, manager, keys, options.head_node)
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    serve(create_app(clusters, Verifier("execute-api", REGION, key_id, secret), clock), options.port)


if __name__ == "__main__":
    main()
