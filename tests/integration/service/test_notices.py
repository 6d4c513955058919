"""What this service asks of others: modules by URL, webhooks and mails when a run ends."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MailHandler
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sandbox.process import free_ports
from tests.integration.service.conftest import Service, wait_until

KEY = "a-key-for-webhooks-in-tests"
WORKFLOW = b"""
from bbpwf.workflow import RemoteTarget, SbatchTask


class Fetched(SbatchTask):
    def command(self):
        return f"echo fetched > {self.output().path}"

    def output(self):
        return RemoteTarget("fetched.txt")
"""


@dataclass
class World:
    """A listed https host; ``posts`` are headers and bodies of what came, ``refuse`` how many more it answers 500."""

    folder: Path
    port: int = 0
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    refuse: int = 0
    mails: list[Message] = field(default_factory=list)
    smtp_port: int = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "world")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "world.pem", folder / "world.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, secret


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    there = World(tmp_path_factory.mktemp("world"))
    pem, secret = _certificate(there.folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/fetched.py": WORKFLOW, "/large.py": b"#" * (2 * 1024 * 1024)}
            if self.path == "/moved.py":
                self.send_response(302)
                self.send_header("Location", f"{there.url}/fetched.py")
                self.end_headers()
                return
            self.send_response(200 if self.path in known else 404)
            self.end_headers()
            self.wfile.write(known.get(self.path, b""))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            there.posts.append(({name.lower(): value for name, value in self.headers.items()}, body))
            there.refuse -= 1
            self.send_response(500 if there.refuse >= 0 else 204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is no news
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    there.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    class Mailbox(MailHandler):
        def handle_message(self, message: Message) -> None:
            there.mails.append(message)

    there.smtp_port = free_ports(1)[0]
    mailbox = Controller(Mailbox(), hostname="127.0.0.1", port=there.smtp_port)
    mailbox.start()
    yield there
    mailbox.stop()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def telling(make_service: Callable[..., Service], world: World) -> Iterator[Service]:
    service = make_service(
        BBPWF_OUTBOUND__HOSTS=json.dumps([f"127.0.0.1:{world.port}"]),
        BBPWF_OUTBOUND__PRIVATE_NETWORKS='["127.0.0.1/32"]',
        BBPWF_OUTBOUND__CA_FILE=str(world.folder / "world.pem"),
        BBPWF_NOTIFY__WEBHOOK_KEY=KEY,
        BBPWF_NOTIFY__SMTP_HOST="127.0.0.1",
        BBPWF_NOTIFY__SMTP_PORT=str(world.smtp_port),
        BBPWF_NOTIFY__SMTP_STARTTLS="false",
        BBPWF_NOTIFY__MAIL_DOMAINS='["example.org"]',
    )
    service.start()
    yield service
    service.stop()


def launch(service: Service, url: str, **engine: str) -> requests.Response:
    fields = {
        "workflow_type": "LUIGI",
        "workflow_type_version": "3.8",
        "workflow_url": url,
        "workflow_params": json.dumps({"who": "world"} if url == "greeting:Hello" else {}),
        "workflow_engine_parameters": json.dumps(engine),
    }
    return service.ask("POST", "/ga4gh/wes/v1/runs", files=[(name, (None, value)) for name, value in fields.items()])


def test_a_module_by_url(telling: Service, world: World) -> None:
    answer = launch(telling, f"{world.url}/fetched.py#Fetched")
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["run_id"]
    assert telling.ended(run_id)["state"] == "COMPLETE"
    assert (telling.data(run_id) / "fetched.txt").read_text() == "fetched\n"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://example.com/fetched.py", "not one that this service asks"),
        ("https://127.0.0.1/fetched.py", "not one that this service asks"),
        ("{world}/moved.py", "leads elsewhere"),
        ("{world}/large.py", "larger than"),
        ("{world}/none.py", "status 404"),
        ("{world}/fetched.txt", "name of a module"),
        ("http://127.0.0.1/fetched.py", "not a plain https URL"),
        ("https://alice:secret@127.0.0.1/fetched.py", "not a plain https URL"),
        ("file:///etc/passwd", "not a plain https URL"),
    ],
)
def test_urls_that_are_not_asked(telling: Service, world: World, url: str, why: str) -> None:
    answer = launch(telling, url.replace("{world}", world.url))
    assert answer.status_code == 400, answer.text
    assert why in answer.json()["msg"]


def test_an_end_is_told_signed_again_after_a_refusal_and_over_a_restart(telling: Service, world: World) -> None:
    world.posts.clear()
    world.refuse = 1
    answer = launch(telling, "greeting:Hello", webhook=f"{world.url}/hook", mail="alice@example.org")
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["run_id"]
    assert telling.ended(run_id)["state"] == "COMPLETE"
    wait_until("the first try, which is refused", lambda: world.posts)
    telling.kill()
    telling.start()
    wait_until("the second", lambda: len(world.posts) >= 2)
    (first, _), (headers, body) = world.posts[:2]
    assert first["webhook-id"] == headers["webhook-id"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    seal = base64.b64encode(hmac.new(KEY.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{seal}"
    assert {"type": "run.ended", "run_id": run_id, "state": "COMPLETE"}.items() <= json.loads(body).items()

    wait_until("the mail", lambda: world.mails)
    assert run_id in str(world.mails[0]["Subject"])
    assert world.mails[0]["To"] == "alice@example.org"
    telling.kill()  # and what was told is not told again
    telling.start()
    again = launch(telling, "greeting:Hello", webhook=f"{world.url}/hook").json()["run_id"]
    wait_until("the next run's end", lambda: any(again.encode() in each for _, each in world.posts))
    assert sum(run_id.encode() in each for _, each in world.posts) == 2


@pytest.mark.parametrize(
    "engine",
    [
        {"webhook": "https://example.com/hook"},
        {"webhook": "nonsense"},
        {"mail": "alice@example.com"},
        {"mail": "alice@example.org\nBcc: bob@example.org"},
        {"mail": "nonsense"},
    ],
)
def test_nobody_else_is_told(telling: Service, engine: dict[str, str]) -> None:
    assert launch(telling, "greeting:Hello", **engine).status_code == 400
