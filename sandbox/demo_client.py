"""What the platform's user interface does, as a client: log in, launch, watch, and look at what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from botocore.exceptions import BotoCoreError, ClientError

from bbpwf.clock import Clock
from sandbox.moto import s3_client
from sandbox.state import SandboxError
from sandbox.tenants import CLI_CLIENT, PROJECT, VIRTUAL_LAB

_TIMEOUT_S = 30.0
_LOG_TAIL = 4000
Json = dict[str, Any]


class DemoClient:
    """One user of the platform. ``urls`` are the sandbox's."""

    def __init__(self, urls: Mapping[str, str], username: str, clock: Clock) -> None:
        self._urls = urls
        self._username = username
        self._clock = clock
        self._http = requests.Session()
        self._http.trust_env = False  # no proxy and no .netrc for loopback
        self._s3: Any = None
        self._token_until = 0.0

    def log_in(self) -> None:
        """Get a token by name and password; called again before it runs out.

        Raises:
            SandboxError: the issuer refuses or cannot be reached.
        """
        form = {
            "grant_type": "password",
            "client_id": CLI_CLIENT,
            "username": self._username,
            "password": self._username,
            "scope": "openid",
        }
        asked_at = self._clock.monotonic()
        answer = self._ask("POST", f"{self._urls['issuer']}/protocol/openid-connect/token", data=form).json()
        self._http.headers["Authorization"] = f"Bearer {answer['access_token']}"
        self._http.headers["virtual-lab-id"] = VIRTUAL_LAB
        self._http.headers["project-id"] = PROJECT
        self._token_until = asked_at + float(answer["expires_in"]) * 0.8

    def launch(self, task: str, config_name: str, config: str) -> str:
        """Send a Luigi config and the task to start, as the browser's form does. Returns the run's id."""
        url = f"{self._urls['service']}/launch/{task}/"
        files = {config_name: (config_name, config.encode())}
        return self._ask("POST", url, data={"cfg_name": config_name}, files=files).text.strip()

    def resume(self, run_id: str) -> None:
        """Let a failed run go on where it failed."""
        self._ask("POST", f"{self._urls['service']}/runs/{run_id}/resume")

    def run(self, run_id: str) -> Json:
        """WES ``GET /runs/{id}``."""
        return self._json(f"{self._urls['service']}/ga4gh/wes/v1/runs/{run_id}")

    def tasks(self, run_id: str) -> list[Json]:
        """All of WES ``GET /runs/{id}/tasks``."""
        found: list[Json] = []
        token = ""
        while True:
            page = self._json(
                f"{self._urls['service']}/ga4gh/wes/v1/runs/{run_id}/tasks",
                params={"page_size": "200", "page_token": token},
            )
            found += page["task_logs"]
            token = page.get("next_page_token", "")
            if not token:
                return found

    def log_tail(self, url: str) -> str:
        """The end of a job's log."""
        return self._ask("GET", url).text[-_LOG_TAIL:]

    def exists(self, url: str) -> bool:
        """Whether the knowledge graph answers for a resource."""
        return self._send("GET", url).ok

    def stored_size(self, url: str) -> int | None:
        """Bytes of the object at an ``s3://bucket/key``; ``None`` if there is none.

        Raises:
            SandboxError: S3 does not answer.
        """
        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            return int(self._storage().head_object(Bucket=bucket, Key=key)["ContentLength"])
        except ClientError:
            return None
        except BotoCoreError as error:
            raise SandboxError(f"S3 does not answer: {error}", where=self._urls["aws"]) from error

    def _storage(self) -> Any:
        if self._s3 is None:
            self._s3 = s3_client(self._urls["aws"])
        return self._s3

    def _json(self, url: str, **how: Any) -> Json:
        answer: Json = self._ask("GET", url, **how).json()
        return answer

    def _fresh(self) -> None:
        if self._token_until and self._clock.monotonic() > self._token_until:
            self._token_until = 0.0
            self.log_in()

    def _ask(self, method: str, url: str, **how: Any) -> requests.Response:
        answer = self._send(method, url, **how)
        if not answer.ok:
            raise SandboxError(f"{method} was answered {answer.status_code}: {answer.text[:500]}", where=url)
        return answer

    def _send(self, method: str, url: str, **how: Any) -> requests.Response:
        self._fresh()
        try:
            return self._http.request(method, url, timeout=_TIMEOUT_S, **how)
        except requests.RequestException as error:
            raise SandboxError(f"no answer: {type(error).__name__}", where=url) from error
