"""``bbpwf agent``: the cluster agent as a process of its own. Started by ``bbpwf serve``, not by people."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading

from bbpwf import confine, faults, log, memory
from bbpwf.cli.wiring import build_agent
from bbpwf.clock import Clock, SystemClock
from bbpwf.cluster.server import AgentServer
from bbpwf.errors import Conflict, LedgerError
from bbpwf.redact import Redactor
from bbpwf.settings import Settings

_log = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""Longest turn of one thread, in seconds: questions are answered while a queue of 50,000 is read."""
CLAIM_CHECK_S = 5.0
"""How soon an agent with nothing to write notices that another one has taken over."""


def serve(settings: Settings, *, until_stdin_closes: bool, clock: Clock | None = None) -> None:
    """Serve the state folder's sockets until SIGTERM, SIGINT, or (if asked) the end of stdin.

    Without a ``clock`` it goes by the system's.

    Raises:
        Conflict: another agent serves this state folder, or has taken over the database.
        LedgerError: the database cannot be used.
    """
    faults.arm(os.environ.get(faults.VARIABLE, ""))
    confine.keep_private()
    sys.setswitchinterval(SWITCH_S)
    memory.share_one_arena()
    gc.set_threshold(*memory.COLLECT_AFTER)
    redactor = Redactor()
    log.configure(redactor, level=settings.log_level, as_json=settings.log_json)
    for secret in (settings.oidc.client_secret, *settings.oidc.offline_keys):
        if secret is not None:
            redactor.add(secret.get_secret_value())
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if until_stdin_closes:
        threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
    server = AgentServer(settings.state, redactor)
    agent = build_agent(settings, clock or SystemClock(), redactor, offer_local=settings.heads.local_cluster)
    agent.ledger.when_fenced = ended.set
    agent.parks_runs = True
    server.start(agent)
    agent.start()
    gc.freeze()  # modules stay: no collection needs to look at them
    _log.info("the agent serves %s", settings.state)
    while not ended.wait(CLAIM_CHECK_S):
        with contextlib.suppress(LedgerError):  # a database in trouble says nothing about who may use it
            agent.ledger.check_claim()
    server.stop()
    agent.stop()
    if agent.ledger.fenced:
        raise Conflict(
            "another agent has taken over this project", hint="Run one service on a database.", retryable=True
        )


def _watch_stdin(ended: threading.Event) -> None:
    """Whoever started the agent holds the other end of its stdin; when it is gone, so are we."""
    while sys.stdin.buffer.read(4096):
        pass
    ended.set()
