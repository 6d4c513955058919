"""``bbpwf gateway``: the gateway in the foreground, with Docker containers or ECS tasks as instances."""

from __future__ import annotations

import logging
import os

import uvicorn

from bbpwf import log, settings
from bbpwf.clock import SystemClock
from bbpwf.redact import Redactor
from bbpwf.settings import GatewaySettings, Settings
from service.gateway import wiring
from service.gateway.app import create_app
from service.gateway.passes import PassMaker

GRACE_S = 5
"""How long requests may take to end when the gateway stops. Instances go on."""


def serve_here(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidConfig: the settings do not make a gateway.
        InstanceFailed: the Docker daemon does not answer.
    """
    configured = settings.load()
    chosen = configured.gateway
    changed = {"host": host or chosen.host, "port": chosen.port if port < 0 else port}
    gateway = chosen.model_copy(update=changed)
    configured = configured.model_copy(update={"gateway": gateway})
    redactor, clock = Redactor(), SystemClock()
    log.configure(redactor, level=configured.log_level, as_json=configured.log_json)
    for chatty in ("httpx", "httpcore", "asyncio", "docker", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.umask(0o077)
    passes = wiring.pass_maker(configured, redactor, clock)
    app = create_app(
        wiring.authorizer(configured, passes, clock),
        wiring.instances(configured, instance_environment(configured, passes), redactor=redactor, clock=clock),
        wait_s=gateway.wait_s,
        body_limit=int(gateway.body_limit_mb * 1024 * 1024),
        redactor=redactor,
    )
    uvicorn.run(
        app,
        host=gateway.host,
        port=gateway.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=75,
    )


def instance_environment(configured: Settings, passes: PassMaker) -> dict[str, str]:
    """What every instance gets from us; no secret, for `docker inspect` shows it."""
    return {
        "BBPWF_OIDC__ISSUER": configured.oidc.issuer,
        "BBPWF_SERVICE__PASS_KEYS": passes.public_keys,
        "BBPWF_SERVICE__PUBLIC_URL": public_url(configured.gateway),
    }


def public_url(gateway: GatewaySettings) -> str:
    """Under which clients reach the gateway."""
    return gateway.public_url or f"http://{gateway.host}:{gateway.port}"
