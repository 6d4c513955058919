"""``bbpwf serve``: the service of one project in the foreground."""

from __future__ import annotations

import gc
import logging
import os

import uvicorn

from bbpwf import faults, log, memory, settings
from bbpwf.clock import SystemClock
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from service.app import create_app, hold

_log = logging.getLogger(__name__)

GRACE_S = 5
"""How long requests may take to end when the service stops."""


def serve_here(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        Conflict: another service runs on the same state folder.
        InvalidConfig: user code cannot be contained as well as the settings require.
    """
    faults.arm(os.environ.get(faults.VARIABLE, ""))
    configured = settings.load()
    serving = configured.service
    changed = {"host": host or serving.host, "port": serving.port if port < 0 else port}
    configured = configured.model_copy(update={"service": serving.model_copy(update=changed)})
    redactor = Redactor()
    log.configure(redactor, level=configured.log_level, as_json=configured.log_json)
    for chatty in ("httpx", "httpcore", "asyncio", "python_multipart"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.umask(0o077)
    app = create_app(configured, redactor=redactor, clock=SystemClock())
    hold(app.state.instance)
    _warn(configured)
    gc.set_threshold(*memory.COLLECT_AFTER)
    gc.collect()
    gc.freeze()  # what is there now stays: a look through all of it would stop every request for 60 ms, once a second
    uvicorn.run(
        app,
        host=configured.service.host,
        port=configured.service.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=75,
        loop="asyncio",  # uvloop takes one new connection a turn: with hundreds at once the last wait for seconds
    )


def _warn(configured: Settings) -> None:
    service = configured.service
    if not service.secure_cookies and service.host not in {"127.0.0.1", "::1", "localhost"}:
        _log.warning("cookies are not Secure although the service listens on %s", service.host)
