"""ECS as it really is, before moto's: idempotent ``RunTask``, failures with status 200, tasks that are unseen or slow.

What moto does not know (``contracts.md`` §8.2) is added by a small server in front of it; everything else is passed on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

_TARGET = "AmazonEC2ContainerServiceV20141113."


@dataclass
class Traps:
    """What goes wrong, and what was seen."""

    moto: str
    address: str = ""
    """Private address that every task has, if not moto's."""
    failures: list[str] = field(default_factory=list)
    """Reasons of the next ``RunTask`` calls that fail with status 200."""
    unseen: int = 0
    """How often the next tasks that are asked about are ``MISSING``."""
    unhealthy_looks: int = 0
    """How often a task is looked at before it is HEALTHY."""
    stopped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields of tasks that ended, by ARN."""
    started: list[dict[str, Any]] = field(default_factory=list)
    """Requests that started a task."""
    looks: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, action: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """What ECS says to one call."""
        asked: dict[str, Any] = json.loads(body or b"{}")
        with self.lock:
            if action == "RunTask":
                return self._run(asked, headers, body)
            if action == "DescribeTasks":
                return self._describe(asked, headers, body)
        return self._pass_on(headers, body)

    def _pass_on(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        answer = requests.post(self.moto, data=body, headers=headers, timeout=30)
        return answer.status_code, answer.content

    def _run(self, asked: dict[str, Any], headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        token = str(asked.get("clientToken", ""))
        if token in self.tokens:
            before, said = self.tokens[token]
            if before != asked:
                refused = {"__type": "ConflictException", "message": "the token was used with other parameters"}
                return 400, json.dumps(refused).encode()
            return 200, json.dumps(said).encode()
        if self.failures:
            failed = {"tasks": [], "failures": [{"arn": "arn:x", "reason": self.failures.pop(0)}]}
            return 200, json.dumps(failed).encode()
        status, content = self._pass_on(headers, body)
        if status == 200:
            self.started.append(asked)
            self.tokens[token] = asked, json.loads(content)
        return status, content

    def _describe(self, asked: dict[str, Any], headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if self.unseen:
            self.unseen -= 1
            missing = [{"arn": each, "reason": "MISSING"} for each in asked["tasks"]]
            return 200, json.dumps({"tasks": [], "failures": missing}).encode()
        status, content = self._pass_on(headers, body)
        said = json.loads(content)
        for task in said.get("tasks", []):
            arn = task["taskArn"]
            self.looks[arn] = self.looks.get(arn, 0) + 1
            healthy = self.looks[arn] > self.unhealthy_looks
            task["healthStatus"] = "HEALTHY" if healthy else "UNKNOWN"
            if self.address:
                details = [{"name": "privateIPv4Address", "value": self.address}]
                task["attachments"] = [{"type": "ElasticNetworkInterface", "status": "ATTACHED", "details": details}]
            task.update(self.stopped.get(arn, {}))
        return status, json.dumps(said).encode()


@contextmanager
def in_front_of(moto: str) -> Iterator[tuple[str, Traps]]:
    """Serve on a free loopback port; answers the URL and the traps."""
    traps = Traps(moto)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            target = self.headers.get("x-amz-target", "")
            headers = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
            if target.startswith(_TARGET):
                status, said = traps.answer(target.removeprefix(_TARGET), headers, body)
            else:
                answer = requests.post(moto + self.path, data=body, headers=headers, timeout=30)
                status, said = answer.status_code, answer.content
            self.send_response(status)
            self.send_header("content-type", "application/x-amz-json-1.1")
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", traps
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
