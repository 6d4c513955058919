"""The command line against a real service and a real issuer: what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.tenants import PROJECT
from tests.integration.service.conftest import Service, wait_until

LIMIT = 120


class Terminal:
    """Somebody's shell: a home and a state folder of their own."""

    def __init__(self, service: Service, home: Path) -> None:
        self.home = home
        self.env = {**service.env, "HOME": str(home), "BBPWF_STATE_DIR": str(home / "state")}
        self.env = {k: v for k, v in self.env.items() if "SECRET" not in k and "SERVICE" not in k}
        self.env["BBPWF_CLUSTER__DATA_ROOT"] = str(home / "data")

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-W", "error::ResourceWarning", "-m", "bbpwf.cli.main", *words]

    def run(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words),
            env={**self.env, **env},
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def terminal(service: Service, tmp_path: Path) -> Terminal:
    return Terminal(service, tmp_path)


@pytest.fixture
def alice(terminal: Terminal) -> Terminal:
    done = terminal.run("login", "--username", "alice", "--password-stdin", stdin="alice\n")
    assert done.returncode == 0, done.stderr
    return terminal


def test_help_is_there_at_once(terminal: Terminal) -> None:
    best = float("inf")
    for _ in range(5):
        began = time.monotonic()
        done = terminal.run("--help")
        best = min(best, time.monotonic() - began)
        assert done.returncode == 0
    assert best < 0.4
    for command in ("run", "launch", "runs", "tasks", "login", "serve", "sandbox"):
        assert f"  {command}" in done.stdout


def test_logging_in_keeps_the_tokens_from_others(terminal: Terminal) -> None:
    done = terminal.run("login", "--username", "alice", "--password-stdin", stdin="alice\n")
    assert done.stdout.strip() == f"logged in as alice, member of project {PROJECT}"
    file = terminal.home / "state" / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "eyJ" not in done.stdout + done.stderr
    assert terminal.run("runs", "list").returncode == 0
    assert terminal.run("logout").returncode == 0
    assert not file.exists()
    assert terminal.run("runs", "list").returncode == 3


def test_tokens_are_refreshed_when_they_are_due(alice: Terminal) -> None:
    file = alice.home / "state" / "credentials.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "expires_at": 0, "access": "worn-out"}))
    assert alice.run("runs", "list").returncode == 0
    assert json.loads(file.read_text())["access"] not in {"worn-out", stored["access"]}
    file.write_text(json.dumps({**stored, "expires_at": 0, "refresh": "revoked"}))
    done = alice.run("runs", "list")
    assert done.returncode == 3
    assert "bbpwf login" in done.stderr


def test_logging_in_by_a_browser_elsewhere(terminal: Terminal, service: Service) -> None:
    with subprocess.Popen(
        terminal.argv("login"), env=terminal.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as login:
        assert login.stderr is not None
        line = login.stderr.readline()
        url = re.search(r"http\S+", line)
        assert url, line
        with requests.Session() as browser:
            form = browser.get(url[0], timeout=10)
            code = re.search(r'name="user_code" value="([^"]+)"', form.text)
            action = re.search(r'action="([^"]+)"', form.text)
            assert code
            assert action
            answer = browser.post(
                requests.compat.urljoin(form.url, action[1].replace("&amp;", "&")),
                data={"user_code": code[1], "username": "ada", "password": "ada", "decision": "yes"},
                timeout=10,
            )
            assert answer.ok
        out, _ = login.communicate(timeout=60)
    assert login.returncode == 0
    assert "logged in as ada, admin of project" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("launch", "nowhere", "Hello"), 2, "nowhere"),
        (("launch", "greeting", "Hello"), 2, "who"),
        (("launch", "greeting", "Hello", "stray"), 2, "stray"),
        (("launch", "greeting", "Hello", "--who", "x", "--tag", "novalue"), 2, "novalue"),
        (("launch", "greeting", "Hello", "--config", "missing.cfg"), 2, "missing.cfg"),
        (("runs", "show", "nothing"), 5, "nothing"),
        (("runs", "logs", "nothing"), 5, "nothing"),
        (("runs", "cancel", "nothing"), 5, "nothing"),
        (("runs", "list", "--state", "HAPPY"), 2, "state"),
        (("tasks", "show", "greeting:Nothing"), 2, "Nothing"),
        (("run", "nowhere", "Hello"), 2, "nowhere"),
        (("run", "greeting"), 2, "MODULE and TASK"),
        (("run", "--resume", "nothing"), 5, "nothing"),
        (("frobnicate",), 2, "frobnicate"),
        (("login", "--password-stdin"), 2, "--username"),
    ],
)
def test_what_is_wrong_is_named_with_its_exit_code(
    alice: Terminal, words: tuple[str, ...], code: int, says: str
) -> None:
    done = alice.run(*words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_access_and_platform_have_codes_of_their_own(terminal: Terminal) -> None:
    assert terminal.run("runs", "list").returncode == 3
    wrong = terminal.run("login", "--username", "alice", "--password-stdin", stdin="wrong\n")
    assert wrong.returncode == 3
    assert "wrong" not in wrong.stderr
    terminal.run("login", "--username", "bob", "--password-stdin", stdin="bob\n")
    foreign = terminal.run("runs", "list")
    assert foreign.returncode == 3
    assert "no member" in foreign.stderr
    terminal.run("login", "--username", "alice", "--password-stdin", stdin="alice\n")
    down = terminal.run("runs", "list", BBPWF_URL="http://127.0.0.1:9")
    assert down.returncode == 4
    assert "127.0.0.1:9" in down.stderr
    unknown = terminal.run("runs", "list", BBPWF_URL="")
    assert unknown.returncode == 2
    assert "BBPWF_URL" in unknown.stderr


def test_launching_and_following_a_run(alice: Terminal, service: Service) -> None:
    done = alice.run("launch", "greeting", "Hello", "--who", "sam", "--tag", "by=cli", "--follow")
    assert done.returncode == 0, done.stderr
    assert "COMPLETE" in done.stdout
    assert "Hello COMPLETE" in done.stderr
    (run,) = alice.json("runs", "list", "--tag", "by=cli")
    shown = alice.json("runs", "show", run["run_id"])
    assert (shown["state"], shown["params"]) == ("COMPLETE", {"who": "sam"})
    task_id = shown["tasks"][0]["id"]
    assert "hello sam" in alice.run("runs", "logs", run["run_id"], task_id).stdout
    assert "the run is COMPLETE" in alice.run("runs", "logs", run["run_id"], "--follow").stdout
    assert run["run_id"] in alice.run("runs", "list").stdout
    assert "Hello" in alice.run("runs", "show", run["run_id"]).stdout


def test_a_failed_run_is_explained_and_its_code_is_1(alice: Terminal) -> None:
    (alice.home / "flaky.py").write_text(
        "from greeting import Hello\nclass Flaky(Hello):\n    def command(self):\n        return 'echo no luck; exit 7'\n"
    )
    done = alice.run("launch", "flaky.py", "Flaky", "--who", "x", "--follow")
    assert done.returncode == 1
    assert "exit code 7" in done.stdout
    assert "no luck" in done.stdout
    as_json = alice.run("launch", "flaky.py", "Flaky", "--who", "x", "--follow", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["state"] == "EXECUTOR_ERROR"
    assert as_json.stderr == ""


def test_folders_and_configs_are_sent_along(alice: Terminal) -> None:
    package = alice.home / "mypack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "more.py").write_text("from greeting import Hello\nclass More(Hello):\n    pass\n")
    (alice.home / "my.cfg").write_text("[More]\nwho = tilda\n")
    words = ("launch", "mypack.more", "More", "--attach", "mypack", "--config", "my.cfg", "--follow", "--json")
    done = alice.run(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"]["state"] == "COMPLETE"


def test_the_same_key_answers_the_same_run(alice: Terminal) -> None:
    words = ("launch", "greeting", "Hello", "--who", "uwe", "--idempotency-key", "once")
    assert alice.json(*words) == alice.json(*words)
    assert alice.run("launch", "greeting", "Hello", "--who", "vera", "--idempotency-key", "once").returncode == 2


def test_canceling_and_resuming(alice: Terminal, service: Service) -> None:
    run_id = alice.json("launch", "greeting", "Hello", "--who", "wim", "--seconds", "3")["run_id"]
    wait_until("it runs", lambda: service.run(run_id)["state"] == "RUNNING")
    assert alice.run("runs", "cancel", run_id).returncode == 0
    service.ended(run_id)
    done = alice.run("runs", "resume", run_id, "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "COMPLETE" in done.stdout


def test_the_catalogue(alice: Terminal) -> None:
    assert "greeting:Hello" in alice.run("tasks", "list").stdout
    shown = alice.run("tasks", "show", "greeting:Hello").stdout
    assert "--who" in shown
    assert "Whom to greet." in shown
    assert alice.json("tasks", "show", "greeting:Hello")["task"] == "Hello"


def test_a_terminal_shows_live_progress(alice: Terminal) -> None:
    ours, theirs = pty.openpty()
    argv = alice.argv("launch", "greeting", "Greetings", "--people", '["xaver", "yves"]', "--seconds", "1", "--follow")
    env = {**alice.env, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    seen = b""
    with subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True) as process:
        os.close(theirs)
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and select.select([ours], [], [], 5)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        process.wait(10)
    os.close(ours)
    assert process.returncode == 0
    text = seen.decode(errors="replace")
    assert "\x1b[" in text
    assert "RUNNING" in text
    assert "Greetings" in text
    assert "COMPLETE" in text


def test_running_without_a_service(terminal: Terminal, service: Service) -> None:
    (terminal.home / "mine.py").write_text((service.folder / "workflows" / "greeting.py").read_text())
    done = terminal.run("run", "mine.py", "Greetings", "--people", '["zoe", "abel"]', BBPWF_OIDC__ISSUER="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "COMPLETE" in done.stdout
    assert "Hello COMPLETE" in done.stderr
    assert len(list((terminal.home / "data" / "runs").glob("*/hello-*.txt"))) == 2
    as_json = terminal.run("run", "mine", "Hello", "--who", "x", "--code", "4", "--json", BBPWF_OIDC__ISSUER="")
    assert as_json.returncode == 1, as_json.stderr
    run = json.loads(as_json.stdout)
    assert run["outcome"]["failed"][0]["exit_code"] == 4
    resumed = terminal.run("run", "--resume", run["run_id"], BBPWF_OIDC__ISSUER="")
    assert resumed.returncode == 1
    assert "exit code 4" in resumed.stdout


def test_interrupting_a_run_cancels_its_jobs(terminal: Terminal, service: Service) -> None:
    (terminal.home / "mine.py").write_text((service.folder / "workflows" / "greeting.py").read_text())
    argv = terminal.argv("run", "mine.py", "Hello", "--who", "late", "--seconds", "60")
    with subprocess.Popen(
        argv, env=terminal.env, cwd=terminal.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines: list[str] = []
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
        reader.start()
        wait_until("its job runs", lambda: any("Hello RUNNING" in line for line in lines))
        process.send_signal(signal.SIGINT)
        process.wait(60)
        reader.join(5)
    assert process.returncode == 130, lines
    assert not list((terminal.home / "data").rglob("ran-late"))
    assert not list((terminal.home / "data").rglob("hello-late.txt"))


def test_two_runs_on_one_state_folder_do_not_mix(terminal: Terminal, service: Service) -> None:
    (terminal.home / "mine.py").write_text((service.folder / "workflows" / "greeting.py").read_text())
    with subprocess.Popen(
        terminal.argv("run", "mine.py", "Hello", "--who", "one", "--seconds", "8"),
        env=terminal.env,
        cwd=terminal.home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as first:
        wait_until("it runs", lambda: list((terminal.home / "data").rglob("log.*")))
        second = terminal.run("run", "mine.py", "Hello", "--who", "two")
        assert second.returncode == 2
        assert "another agent" in second.stderr
        assert first.wait(60) == 0


def test_following_outlives_a_restart_of_the_service(make_service: Callable[..., Service], tmp_path: Path) -> None:
    service = make_service()
    service.start()
    terminal = Terminal(service, tmp_path)
    terminal.run("login", "--username", "alice", "--password-stdin", stdin="alice\n")
    argv = terminal.argv("launch", "greeting", "Hello", "--who", "through", "--seconds", "6", "--follow")
    with subprocess.Popen(
        argv, env=terminal.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        wait_until("it runs", lambda: any(r["state"] == "RUNNING" for r in terminal.json("runs", "list")))
        service.kill()
        time.sleep(1)  # the follower must meet a service that is away
        service.start()
        out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out
    assert "COMPLETE" in out
