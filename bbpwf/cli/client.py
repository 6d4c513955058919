"""The project's service as a Python object: requests with limits, answers as dicts, errors as our own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import requests
from pydantic import SecretStr

from bbpwf import errors
from bbpwf.clock import SystemClock
from bbpwf.errors import BbpwfError, ConnectFailed, InvalidConfig
from bbpwf.redact import Redactor
from bbpwf.settings import Settings

_TIMEOUT = (5.0, 60.0)
_WES = "/ga4gh/wes/v1"
_BY_STATUS: dict[int, type[BbpwfError]] = {
    400: errors.InvalidInput,
    401: errors.NotAuthenticated,
    403: errors.NotAuthorized,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.LimitExceeded,
    503: errors.PlatformError,
    504: errors.DeadlineExceeded,
}


class ServiceClient:
    """One service, spoken to with the tokens that ``token`` gives.

    Every call raises what the service answered as the error that it is, ConnectFailed when it does not answer.
    """

    def __init__(self, settings: Settings, token: Callable[[], SecretStr]) -> None:
        if not settings.url:
            raise InvalidConfig("it is not known where the service is", hint="Set BBPWF_URL to its address.")
        self._url = settings.url.rstrip("/")
        self._token = token
        self._session = requests.Session()
        self._session.headers["virtual-lab-id"] = settings.project.virtual_lab_id
        self._session.headers["project-id"] = settings.project.project_id

    def launch(self, fields: dict[str, str], files: Sequence[tuple[str, bytes]], *, idempotency_key: str = "") -> str:
        """Launch a run with these WES fields and attachments; its id."""
        parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in fields.items()]
        parts += [("workflow_attachment", (name, content)) for name, content in files]
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return str(self._ask("POST", f"{_WES}/runs", files=parts, headers=headers).json()["run_id"])

    def runs(self, *, states: Iterable[str] = (), tags: Iterable[str] = (), limit: int = 20) -> list[dict[str, Any]]:
        """The newest runs, as WES summaries."""
        query: dict[str, Any] = {"state": list(states), "tag": list(tags)}
        found: list[dict[str, Any]] = []
        for run in self._pages(f"{_WES}/runs", "runs", query, size=min(limit, 200)):
            found.append(run)
            if len(found) == limit:
                break
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        """One run, with reason and outcome."""
        return dict(self._ask("GET", f"/runs/{quote(run_id, safe='')}").json())

    def tasks(self, run_id: str) -> list[dict[str, Any]]:
        """All tasks of a run, with their array elements."""
        return list(self._pages(f"/runs/{quote(run_id, safe='')}/tasks", "tasks", {}, size=1000))

    def explain(self, run_id: str, task_id: str) -> dict[str, Any]:
        """Why a task's jobs wait, or how they ended and why."""
        path = f"/runs/{quote(run_id, safe='')}/tasks/{quote(task_id, safe='')}/explain"
        return dict(self._ask("GET", path).json())

    def cancel(self, run_id: str) -> None:
        """Have a run canceled."""
        self._ask("POST", f"{_WES}/runs/{quote(run_id, safe='')}/cancel")

    def cancel_task(self, run_id: str, task_id: str) -> int:
        """Have the jobs of a task, or of one element, canceled; how many of them have not ended yet. Idempotent."""
        path = f"/runs/{quote(run_id, safe='')}/tasks/{quote(task_id, safe='')}/cancel"
        return int(self._ask("POST", path).json()["left"])

    def throttle(self, run_id: str, task_id: str, limit: int) -> None:
        """Let at most ``limit`` of a task's jobs run at once; 0 lifts the limit."""
        path = f"/runs/{quote(run_id, safe='')}/tasks/{quote(task_id, safe='')}/throttle"
        self._ask("POST", path, params={"limit": limit})

    def pause(self, run_id: str) -> None:
        """Have nothing new begun for a run until it is resumed."""
        self._ask("POST", f"/runs/{quote(run_id, safe='')}/pause")

    def resume(self, run_id: str) -> None:
        """Queue a run again that did not complete, or that was paused."""
        self._ask("POST", f"/runs/{quote(run_id, safe='')}/resume")

    def log(self, run_id: str, task_id: str = "", offset: int = 0) -> tuple[str, int]:
        """A piece of a task's log, or of the engine's without one; and the offset after it."""
        path = f"/runs/{quote(run_id, safe='')}"
        path += f"/tasks/{quote(task_id, safe='')}/logs" if task_id else "/log"
        answer = self._ask("GET", path, params={"offset": offset})
        return answer.text, int(answer.headers.get("X-Next-Offset", offset))

    def catalogue(self) -> list[dict[str, Any]]:
        """What can be launched."""
        return list(self._ask("GET", "/tasks").json()["tasks"])

    def task(self, name: str) -> dict[str, Any]:
        """One task of the catalogue, by ``module:Task``."""
        return dict(self._ask("GET", f"/tasks/{quote(name, safe=':')}").json())

    def leave_login(self, token: SecretStr) -> list[str]:
        """Leave an offline login for the caller's runs; those that were parked for want of one and go on now."""
        return list(self._ask("PUT", "/consent", json={"refresh_token": token.get_secret_value()}).json()["resumed"])

    def withdraw_login(self) -> None:
        """Withdraw the caller's offline login."""
        self._ask("DELETE", "/consent")

    def _pages(self, path: str, key: str, query: dict[str, Any], *, size: int) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            body = self._ask("GET", path, params=query | {"page_size": size, "page_token": token}).json()
            yield from body[key]
            token = body["next_page_token"]
            if not token:
                return

    def _ask(self, method: str, path: str, **request: Any) -> requests.Response:
        headers = {**request.pop("headers", {}), "Authorization": f"Bearer {self._token().get_secret_value()}"}
        try:
            answer = self._session.request(
                method, self._url + path, headers=headers, timeout=_TIMEOUT, allow_redirects=False, **request
            )
        except requests.RequestException as error:
            raise ConnectFailed(
                f"the service does not answer ({type(error).__name__})",
                where=self._url,
                hint="Is it running, and BBPWF_URL right?",
            ) from None  # its text repeats the request
        if answer.status_code >= 300:
            raise _error(answer)
        return answer


def _error(answer: requests.Response) -> BbpwfError:
    try:
        body = answer.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    message = str(body.get("detail") or body.get("msg") or f"the service answered {answer.status_code}")
    named = getattr(errors, str(body.get("type", "")).rpartition(":")[2], None)
    kind = _BY_STATUS.get(answer.status_code, errors.PlatformError)
    if isinstance(named, type) and issubclass(named, kind):
        kind = named
    hint = "Run: bbpwf login" if answer.status_code == 401 else ""
    error = kind.__new__(kind)
    BbpwfError.__init__(error, message, hint=hint)
    return error


def connect(settings: Settings) -> ServiceClient:
    """The service of these settings, with the login of this machine or the token in ``BBPWF_TOKEN``."""
    from bbpwf.cli.credentials import Credentials

    credentials = Credentials(settings, SystemClock(), Redactor(), token=os.environ.get("BBPWF_TOKEN", ""))
    return ServiceClient(settings, credentials.access_token)
