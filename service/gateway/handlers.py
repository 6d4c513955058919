"""The gateway as three Lambdas: ``authorize``, ``handle`` and ``tend``, each a plain ``(event, context)``.

What they need is built from the environment at the first event of a process and kept for the next ones. The authorizer
alone can read the signing key; the handler checks passes with public keys.
"""

from __future__ import annotations

import functools
import http.client
import logging
from typing import Any

from bbpwf import log, settings
from bbpwf.clock import SystemClock
from bbpwf.errors import BbpwfError, InstanceFailed, InvalidConfig, NotAuthenticated
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from service import errors
from service.gateway import events, wiring
from service.gateway.authorizer import Authorizer, Project, bearer
from service.gateway.events import Call, Event
from service.gateway.instances import Instances, Starting
from service.gateway.passes import PassChecker
from service.gateway.passing import to_caller, to_instance

_log = logging.getLogger(__name__)

ANSWER_LIMIT = 4_400_000
"""Bytes of an answer: Lambda passes on 6 MB, and base64 makes four bytes of three."""
_CONNECT_S = 3.0
_ANSWER_S = 24.0
"""API Gateway waits for 29 s in all; an event stream ends after this long and is resumed by its client."""


def authorize(event: Event, context: object) -> Event:
    """Authorizer of a REST API (TOKEN or REQUEST) or an HTTP API (payload 1.0 or 2.0).

    Raises:
        Exception: ``Unauthorized``, which API Gateway answers as 401.
        IdentityUnavailable: Keycloak cannot be asked; API Gateway answers 500.
    """
    del context
    configured, redactor = _configured()
    return decide(event, _authorizer(), simple=configured.gateway.simple_responses, redactor=redactor)


def decide(event: Event, authorizer: Authorizer, *, simple: bool, redactor: Redactor) -> Event:
    """What :func:`authorize` does, with its parts handed in."""
    asked = events.question(event)
    try:
        admitted = authorizer.admit(
            asked.authorization, virtual_lab_id=asked.virtual_lab_id, project_id=asked.project_id
        )
    except NotAuthenticated as error:
        _log.info("refused: %s", error)
        raise Exception(events.RAISED) from None  # noqa: TRY002  these very words are API Gateway's protocol
    except BbpwfError as error:
        if error.retryable:
            raise
        reason = {"reason": redactor.mask(str(error))[:500]}
        return events.verdict(asked, allowed=False, principal="", context=reason, simple=simple)
    said = {
        "pass": admitted.gate_pass,
        "sub": admitted.sub,
        "virtual_lab_id": admitted.project.virtual_lab_id,
        "project_id": admitted.project.project_id,
    }
    return events.verdict(asked, allowed=True, principal=admitted.sub, context=said, simple=simple)


def handle(event: Event, context: object) -> Event:
    """Container Instances Handler: passes a request on to its project's instance, which it finds or starts."""
    del context
    configured, redactor = _configured()
    return serve(event, _checker(), _instances(), wait_s=min(configured.gateway.wait_s, _ANSWER_S), redactor=redactor)


def serve(event: Event, passes: PassChecker, instances: Instances, *, wait_s: float, redactor: Redactor) -> Event:
    """What :func:`handle` does, with its parts handed in."""
    asked = events.call(event)
    try:
        # not the authorizer's word but its signature is what counts, and that it is about this very token
        gate_pass = asked.context.get("pass", "")
        said = passes.check(gate_pass, bearer(asked.header("authorization")))
        project = Project(said.virtual_lab_id, said.project_id)
        state = instances.find(project, said.sub, wait_s=wait_s)
        if isinstance(state, Starting):
            return _starting(asked, state)
        try:
            return _pass_on(asked, state.address, project, gate_pass)
        except (OSError, http.client.HTTPException) as error:
            instances.forget(project)
            raise InstanceFailed(f"the project's instance does not answer ({type(error).__name__})") from error
    except BbpwfError as error:
        return _answer(asked, errors.answer_error(asked.path, error, redactor))


def tend(event: Event, context: object) -> None:
    """Called by a schedule and by ECS's events: brings back instances that ended badly."""
    del event, context
    _configured()
    _instances().tend()


def _pass_on(asked: Call, address: str, project: Project, gate_pass: str) -> Event:
    connection = http.client.HTTPConnection(address, timeout=_CONNECT_S)
    try:
        connection.connect()
        connection.sock.settimeout(_ANSWER_S)
        connection.putrequest(asked.method, asked.target, skip_accept_encoding=True)
        for name, value in to_instance(asked.headers, project, gate_pass):
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(asked.body)))
        connection.endheaders(asked.body or None)
        answer = connection.getresponse()
        headers = [(name, value) for name, value in to_caller(answer.getheaders()) if name != "content-length"]
        body = _read(answer, streamed=answer.headers.get_content_type() == "text/event-stream")
        if len(body) > ANSWER_LIMIT:
            limit = f"the answer is over {ANSWER_LIMIT} bytes, which this gateway cannot pass on; ask for a part of it"
            return _answer(asked, errors.answer(asked.path, 502, limit, kind="LimitExceeded"))
        return events.response(asked.version, answer.status, headers, body)
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse, *, streamed: bool) -> bytes:
    if not streamed:
        return answer.read(ANSWER_LIMIT + 1)
    clock = SystemClock()
    deadline = clock.monotonic() + _ANSWER_S - _CONNECT_S
    parts: list[bytes] = []
    size = 0
    try:
        while clock.monotonic() < deadline and size < ANSWER_LIMIT // 2:
            part = answer.read1(64 * 1024)
            if not part:
                break
            parts.append(part)
            size += len(part)
    except TimeoutError:
        _log.debug("a quiet event stream was cut; its client comes back")
    return b"".join(parts)


def _starting(asked: Call, state: Starting) -> Event:
    headers = {"Retry-After": str(state.retry_after_s)}
    return _answer(asked, errors.answer(asked.path, 503, state.reason, kind="InstanceStarting", headers=headers))


def _answer(asked: Call, said: Any) -> Event:
    return events.response(asked.version, said.status_code, list(said.headers.items()), bytes(said.body))


@functools.cache
def _configured() -> tuple[Settings, Redactor]:
    configured, redactor = settings.load(), Redactor()
    log.configure(redactor, level=configured.log_level, as_json=True)
    return configured, redactor


@functools.cache
def _authorizer() -> Authorizer:
    configured, redactor = _configured()
    clock = SystemClock()
    return wiring.authorizer(configured, wiring.pass_maker(configured, redactor, clock), clock)


@functools.cache
def _checker() -> PassChecker:
    configured, _ = _configured()
    if not configured.gateway.pass_keys:
        raise InvalidConfig("the handler needs the public keys of passes", hint="Set BBPWF_GATEWAY__PASS_KEYS.")
    return PassChecker(configured.gateway.pass_keys, SystemClock())


@functools.cache
def _instances() -> Instances:
    configured, redactor = _configured()
    return wiring.instances(configured, {}, redactor=redactor, clock=SystemClock())
