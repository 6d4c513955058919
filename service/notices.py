"""Telling others that a run ended: a signed webhook, a mail.

What is to be told is written in the same transaction as the run's end, and each try is counted before it is made: a
restart loses nothing, and nothing is tried more than :data:`TRIES` times. A receiver may hear of the same end
twice; it then has the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import smtplib
import ssl
import threading
from collections.abc import Mapping
from email.message import EmailMessage

from bbpwf.clock import Clock
from bbpwf.cluster.notices import Notice, NoticeStore
from bbpwf.cluster.records import RunRecord, RunRequest
from bbpwf.cluster.runs import RunStore
from bbpwf.errors import BbpwfError, InvalidInput
from bbpwf.redact import Redactor
from bbpwf.settings import NotifySettings
from service.outbound import Outbound, Unreachable

_log = logging.getLogger(__name__)

TRIES = 8
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 3600.0
LOOK_EVERY_S = 2.0
WEBHOOK, MAIL = "webhook", "mail"
_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,63})\Z", re.ASCII)


class Notices:
    """Who is to be told of a run's end. Knows nothing of networks: see :class:`Notifier`."""

    def __init__(self, settings: NotifySettings, outbound: Outbound) -> None:
        self._settings = settings
        self._outbound = outbound

    def check(self, engine_parameters: Mapping[str, str]) -> None:
        """That a launch asks for what this service does.

        Raises:
            InvalidInput: a webhook to a host that is not listed, a mail to a domain that is not, or none are sent here.
        """
        if url := engine_parameters.get(WEBHOOK):
            self._outbound.check(url)
            if self._settings.webhook_key is None:
                raise InvalidInput("this service sends no webhooks")
        if address := engine_parameters.get(MAIL):
            found = _ADDRESS.match(address)
            if found is None:
                raise InvalidInput(f"{address[:100]!r} is not a mail address")
            if not self._settings.smtp_host or found[1].lower() not in self._settings.mail_domains:
                raise InvalidInput("this service sends no mail to that domain")

    def targets(self, request: RunRequest) -> list[str]:
        """``<kind>:<where>`` of everybody who is to be told of the run's end."""
        asked = request.workflow_engine_parameters
        return [f"{kind}:{asked[kind]}" for kind in (WEBHOOK, MAIL) if asked.get(kind)]


class Notifier:
    """A thread that tells."""

    def __init__(
        self,
        settings: NotifySettings,
        outbound: Outbound,
        store: RunStore,
        notices: NoticeStore,
        redactor: Redactor,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._outbound = outbound
        self._store = store
        self._notices = notices
        self._redactor = redactor
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="notices", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not told yet is told after the next start."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(30.0)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except Exception:  # this thread must not die of one defect  # noqa: BLE001 logged in full
                _log.exception("notices stumbled")
            self._stopping.wait(LOOK_EVERY_S)

    def tick(self) -> None:
        """Make every try that is due."""
        for notice in self._notices.due():
            if self._stopping.is_set():
                return
            if notice.tries >= TRIES:  # the service was killed during the last
                self._notices.failed(notice, "the last try was cut short", for_good=True)
                continue
            wait = min(FIRST_WAIT_S * 2**notice.tries, LONGEST_WAIT_S)
            if not self._notices.begin(notice, wait):  # somebody else took it
                continue
            try:
                self._tell(notice, self._store.get(notice.run_id))
            except Exception as error:  # noqa: BLE001 whatever it was, the run's end is told later or given up
                last = notice.tries + 1 >= TRIES or (isinstance(error, BbpwfError) and not error.retryable)
                reason = self._redactor.mask(f"{type(error).__name__}: {error}")[:500]
                self._notices.failed(notice, reason, for_good=last)
                _log.warning("run %s: its end was not told: %s", notice.run_id, reason, extra={"run_id": notice.run_id})
            else:
                self._notices.told(notice)

    def _tell(self, notice: Notice, run: RunRecord) -> None:
        kind, _, where = notice.target.partition(":")
        if kind == WEBHOOK:
            self._post(notice, run, where)
        else:
            self._mail(notice, run, where)

    def _post(self, notice: Notice, run: RunRecord, url: str) -> None:
        if self._settings.webhook_key is None:
            raise InvalidInput("no key to sign webhooks with is set")
        body = json.dumps(
            {
                "type": "run.ended",
                "run_id": run.run_id,
                "state": notice.state,
                "reason": self._redactor.mask(run.reason),
                "incarnation": notice.incarnation,
                "workflow_url": run.request.workflow_url,
                "tags": run.tags,
            }
        ).encode()
        headers = signed(self._settings.webhook_key.get_secret_value(), notice.id, int(self._clock.now()), body)
        status = self._outbound.post(url, body, headers | {"Content-Type": "application/json"})
        if not 200 <= status < 300:
            raise Unreachable(f"the webhook answered with status {status}")

    def _mail(self, notice: Notice, run: RunRecord, address: str) -> None:
        mail = EmailMessage()
        mail["From"] = self._settings.mail_from
        mail["To"] = address
        mail["Subject"] = f"Run {run.run_id} is {notice.state}"
        mail["Message-ID"] = f"<{notice.id}@bbpwf>"
        mail["Auto-Submitted"] = "auto-generated"
        reason = self._redactor.mask(run.reason)
        mail.set_content(f"Run {run.run_id} of {run.request.workflow_url} is {notice.state}.\n\n{reason}\n")
        given = self._settings
        with smtplib.SMTP(given.smtp_host, given.smtp_port, timeout=given.smtp_timeout_s) as server:
            if given.smtp_starttls:
                server.starttls(context=ssl.create_default_context())
            if given.smtp_user and given.smtp_password is not None:
                server.login(given.smtp_user, given.smtp_password.get_secret_value())
            server.send_message(mail)


def signed(key: str, notice_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Headers of a webhook, in the manner of Standard Webhooks: HMAC-SHA256 over id, time and body."""
    content = f"{notice_id}.{timestamp}.".encode() + body
    seal = base64.b64encode(hmac.new(key.encode(), content, hashlib.sha256).digest()).decode()
    return {"webhook-id": notice_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{seal}"}
