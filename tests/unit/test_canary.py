"""The search for planted secrets finds what is there: a canary that cannot sing would prove nothing."""

from __future__ import annotations

import base64
import html
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import BaseModel, SecretStr

from bbpwf.settings import Settings
from tests.support.canary import Canary, Home, Leak, Processes, Seen, made_up, settings_secrets

PASSWORD = "p&ss<word>/with+all=that'is\"odd\\ü"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSIsImF6cCI6ImEifQ.c2lnbmF0dXJlLW9mLWFsaWNl"
PEM = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    .decode()
)


@pytest.fixture
def canary() -> Canary:
    made = Canary()
    made.plant("password", PASSWORD)
    made.plant("token", TOKEN)
    made.plant("key", PEM)
    return made


@pytest.mark.parametrize(
    "text",
    [
        f"log: {PASSWORD}!",
        f"https://host/?q={quote(PASSWORD, safe='')}&r=1",
        json.dumps({"reason": PASSWORD}),
        repr({"reason": PASSWORD}),
        f"<p>{html.escape(PASSWORD)}</p>",
        PASSWORD.encode().hex(),
        f"cut: {PASSWORD[:20]}…",
        *(base64.b64encode(f"{'x' * before}{PASSWORD}yy".encode()).decode() for before in range(7)),
        *(base64.urlsafe_b64encode(f"{'x' * before}:{PASSWORD}".encode()).decode() for before in range(3)),
    ],
)
def test_a_value_is_found_however_it_is_written(canary: Canary, text: str) -> None:
    assert canary.search(text.encode()) == {"password"}


def test_pieces_are_found(canary: Canary) -> None:
    lines = PEM.splitlines()
    assert canary.search(f"at line 3: {lines[3]}".encode()) == {"key"}
    assert canary.search(f"the end is {lines[-2]}".encode()) == {"key"}
    assert canary.search(b"signature " + TOKEN.rpartition(".")[2].encode()) == {"token"}
    assert canary.search(b"the key begins with " + lines[0].encode()) == {"a private key"}


def test_what_is_no_secret_is_not_found(canary: Canary) -> None:
    assert canary.search(b"eyJhbGciOiJSUzI1NiJ9 is the header of any token; -----BEGIN PUBLIC KEY-----") == set()
    assert canary.search(json.dumps({"password": "[redacted]"}).encode()) == set()


def test_secrets_that_nobody_planted_are_known_by_their_shape() -> None:
    assert Canary().search(TOKEN.encode()) == {"a JWT"}
    assert Canary().search(PEM.encode()) == {"a private key"}


def test_a_secret_may_be_at_home_and_nowhere_else(canary: Canary, tmp_path: Path) -> None:
    homes = [Home("own/*", "password", "it lives there")]
    for name in ("own/a", "own/b", "elsewhere/deep/c"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        file.write_text(PASSWORD)
    (tmp_path / "own" / "b").chmod(0o644)
    (tmp_path / "own" / "token").write_text(TOKEN)
    (tmp_path / "link").symlink_to(tmp_path / "own" / "a")
    os.mkfifo(tmp_path / "pipe")
    found = {(each.secret, each.where) for each in canary.in_files(tmp_path, homes)}
    assert found == {
        ("password", "elsewhere/deep/c"),
        ("password", "own/b, which others may read (644)"),
        ("token", "own/token"),
        ("a JWT", "own/token"),
    }


def test_the_name_of_a_file_counts_too(canary: Canary, tmp_path: Path) -> None:
    (tmp_path / TOKEN).touch(0o600)
    assert {each.secret for each in canary.in_files(tmp_path)} == {"token", "a JWT"}


def test_what_the_platform_writes_is_looked_through(canary: Canary, tmp_path: Path) -> None:
    ours = {"a/state/bbpwf.db", "a/state/runs/r1/head.log", "b/service.log", "c/data/.bbpwf/spool/job.sh"}
    for name in (*ours, "issuer/keys.json", "a/env"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PASSWORD)
    assert {each.where for each in canary.in_what_was_written(tmp_path)} == ours


def test_every_column_of_every_table_is_looked_at(canary: Canary, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.execute("CREATE TABLE runs (id INTEGER, reason TEXT, data BLOB)")
        db.execute('CREATE TABLE "odd name" (x)')
        db.execute("INSERT INTO runs VALUES (1, 'fine', ?)", (b"\0\1" + PASSWORD.encode(),))
        db.execute("INSERT INTO runs VALUES (2, ?, NULL)", (PEM.splitlines()[5],))
        db.execute('INSERT INTO "odd name" VALUES (?)', (json.dumps([TOKEN]),))
        db.commit()
    found = canary.in_database(tmp_path / "x.db")
    assert {(each.secret, each.where) for each in found} == {
        ("password", "runs.data"),
        ("key", "runs.reason"),
        ("token", "odd name.x"),
        ("a JWT", "odd name.x"),
    }


def test_command_lines_and_environments_of_processes_are_seen(canary: Canary) -> None:
    argv = [sys.executable, "-c", "import sys; sys.stdin.read()", f"--token={TOKEN}"]
    env = {"PATH": os.environ["PATH"], "MAIL": PASSWORD}
    with Processes(canary) as processes, subprocess.Popen(argv, env=env, stdin=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + 60
            while not any(TOKEN in each for each in processes.commands):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            child.kill()

    def rightful(seen: Seen, name: str) -> bool:
        return seen.pid == child.pid and name == "password"

    command = " ".join(argv)
    in_argv = [Leak(name, f"argv of {command}") for name in ("a JWT", "token")]
    assert [each for each in processes.leaks(rightful) if command in each.where] == in_argv
    strict = processes.leaks(lambda seen, name: False)
    assert Leak("password", f"environment of {command}") in strict


def test_every_secret_setting_is_planted() -> None:
    assert set(settings_secrets(Settings)) >= {
        "BBPWF_OIDC__CLIENT_SECRET",
        "BBPWF_OIDC__OFFLINE_KEYS",
        "BBPWF_NOTIFY__WEBHOOK_KEY",
        "BBPWF_NOTIFY__SMTP_PASSWORD",
    }
    canary = Canary()
    env = canary.plant_settings(Settings, {"BBPWF_OIDC__CLIENT_SECRET": "given-by-the-issuer"})
    assert env["BBPWF_OIDC__CLIENT_SECRET"] == "given-by-the-issuer"
    assert len(json.loads(env["BBPWF_OIDC__OFFLINE_KEYS"])) == 1
    for name, value in env.items():
        assert canary.search(value.encode()) == {name}


def test_a_new_secret_setting_is_covered_by_itself() -> None:
    class Inner(BaseModel):
        code: SecretStr | None = None
        name: str = ""

    class Outer(BaseModel):
        inner: Inner = Inner()
        keys: tuple[SecretStr, ...] = ()
        pair: dict[str, SecretStr] = {}

    assert settings_secrets(Outer, "X_") == {"X_INNER__CODE": False, "X_KEYS": True, "X_PAIR": False}


def test_values_are_all_different() -> None:
    assert len({made_up() for _ in range(10)}) == 10
