"""``bbpwf sandbox`` as a person uses it: up, status, env, down; two at once; and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import lifecycle, state
from sandbox.pids import MARKER, ProcessId, belonging, boot_id, identify
from sandbox.state import Part, SandboxState

Bbpwf = Callable[..., "subprocess.CompletedProcess[str]"]
COMMAND = (sys.executable, "-m", "bbpwf.cli.main", "sandbox")
DOUBLES = {"moto", "oidc", "nexus"}


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Folders for sandboxes, each ended at the end."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append((tmp_path / name).resolve())
        return made[-1]

    yield make
    for folder in made:
        lifecycle.down(folder, lambda _: None)


def bbpwf(*argv: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run((*COMMAND, *argv), capture_output=True, text=True, timeout=timeout, check=False)


def up(folder: Path, *options: str) -> dict[str, Any]:
    done = bbpwf("up", "--dir", str(folder), "--json", *options)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def status(folder: Path) -> tuple[int, dict[str, str]]:
    done = bbpwf("status", "--dir", str(folder), "--json")
    return done.returncode, {part["name"]: part["state"] for part in json.loads(done.stdout)["parts"]}


def left_of(*folders: Path) -> list[str]:
    """Command lines of all processes that carry the mark of a sandbox, found without its own help."""
    marks = {f"{MARKER}={folder}".encode() for folder in folders}
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marks & set((entry / "environ").read_bytes().split(b"\0")):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)


def until(what: Callable[[], bool], *, within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slurm
def test_two_live_side_by_side_and_end_without_a_trace(folders: Callable[[str], Path]) -> None:
    here, there = folders("here"), folders("there")
    starting = [
        subprocess.Popen((*COMMAND, "up", "--dir", str(folder), "--json"), stdout=subprocess.PIPE)
        for folder in (here, there)
    ]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in starting]
    assert [process.returncode for process in starting] == [0, 0]

    ports = [{part["port"] for part in each["parts"]} - {None} for each in said]
    assert len(ports[0]) == len(ports[1]) == 6
    assert not ports[0] & ports[1]
    for folder, each in zip((here, there), said, strict=True):
        code, states = status(folder)
        assert code == 0
        assert set(states.values()) == {"healthy"}
        assert {*DOUBLES, "provisioner", "sshd", "munged", "slurmctld", "slurmd-n4", "service"} <= set(states)
        assert answers(each["urls"]["issuer"] + "/.well-known/openid-configuration")

    again = up(here)
    pids = [
        {part["name"]: part["pid"] for part in each["parts"] if part["name"] != "service"} for each in (said[0], again)
    ]
    assert pids[0] == pids[1]  # nothing was started twice; the service is, when its code has changed
    assert status(here)[0] == 0

    ended = bbpwf("down", "--dir", str(here))
    assert ended.returncode == 0
    assert left_of(here) == []
    assert belonging(here) == []
    assert status(here) == (5, {})
    assert status(there)[0] == 0
    assert answers(said[1]["urls"]["issuer"] + "/.well-known/openid-configuration")

    twice = bbpwf("down", "--dir", str(here))
    assert twice.returncode == 0
    assert "nothing was running" in twice.stderr
    assert bbpwf("down", "--dir", str(there), "--purge").returncode == 0
    assert left_of(there) == []
    assert not there.exists()


def test_a_killed_part_is_shown_and_up_makes_it_whole_again(folders: Callable[[str], Path]) -> None:
    folder = folders("one")
    first = up(folder, "--no-service", "--backend", "local")
    victim = next(part for part in first["parts"] if part["name"] == "nexus")
    os.kill(victim["pid"], signal.SIGKILL)
    until(lambda: status(folder) == (4, {"moto": "healthy", "oidc": "healthy", "nexus": "dead"}))
    table = bbpwf("status", "--dir", str(folder))
    assert "dead" in table.stdout
    assert victim["log"] in table.stdout

    second = up(folder, "--no-service", "--backend", "local")
    assert status(folder) == (0, dict.fromkeys(DOUBLES, "healthy"))
    assert second["urls"] == first["urls"]  # links to what was registered stay good


def test_a_part_that_hangs_is_not_called_healthy(folders: Callable[[str], Path]) -> None:
    folder = folders("one")
    started = up(folder, "--no-service", "--backend", "local")
    victim = next(part["pid"] for part in started["parts"] if part["name"] == "oidc")
    os.kill(victim, signal.SIGSTOP)
    try:
        code, states = status(folder)
        assert (code, states["oidc"]) == (4, "unresponsive")
    finally:
        os.kill(victim, signal.SIGCONT)


def test_the_service_alone_is_started_again(folders: Callable[[str], Path]) -> None:
    folder = folders("one")
    first = {part["name"]: part["pid"] for part in up(folder, "--backend", "local")["parts"]}
    os.kill(first["service"], signal.SIGKILL)
    until(lambda: status(folder)[1]["service"] == "dead")
    second = {part["name"]: part["pid"] for part in up(folder, "--backend", "local")["parts"]}
    assert second.pop("service") != first.pop("service")
    assert second == first


@pytest.mark.slurm
def test_down_ends_jobs_and_sessions_even_if_everything_else_was_killed(folders: Callable[[str], Path]) -> None:
    folder = folders("f")
    started = up(folder, "--no-service")
    home, keys = folder / "cluster" / "home" / "sim", folder / "ssh"
    port = next(part["port"] for part in started["parts"] if part["name"] == "sshd")
    ssh = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    ssh += ["-o", f"UserKnownHostsFile={folder / 'hosts'}", "-o", "LogLevel=ERROR"]
    ssh += ["-i", str(keys / "sim.pem"), "-p", str(port), "sim@127.0.0.1"]
    script = "sbatch --parsable -o out --wrap 'setsid sleep 7777 & echo $$ >job; sleep 7777' && exec sleep 7777"
    with subprocess.Popen([*ssh, f"bash -lc {json.dumps(script)}"], stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        assert session.stdout.readline().strip().isdigit()
        until(lambda: (home / "job").exists() and (home / "job").read_text() != "")
        job = identify(int((home / "job").read_text()))
        assert job is not None
        for part in started["parts"]:
            os.kill(part["pid"], signal.SIGKILL)
        assert job.alive()
        assert bbpwf("down", "--dir", str(folder)).returncode == 0
        assert not job.alive()
        session.wait(10)
    assert belonging(folder) == []
    asleep = subprocess.run(["pgrep", "-fa", "^sleep 7777"], capture_output=True, text=True, check=False)
    assert asleep.stdout == ""


@pytest.mark.parametrize("moment", ["starting", "up"])
def test_an_interrupt_leaves_nothing(folders: Callable[[str], Path], moment: str) -> None:
    folder = folders("one")
    argv = (*COMMAND, "up", "--foreground", "--backend", "local", "--dir", str(folder))
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if ("moto" if moment == "starting" else "Ctrl-C") in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert left_of(folder) == []
    assert status(folder) == (5, {})


def test_a_process_that_has_the_number_of_a_part_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            seen = identify(stranger.pid)
            assert seen is not None
            before = ProcessId(pid=seen.pid, started=seen.started, boot="the boot before")
            earlier = ProcessId(pid=seen.pid, started=seen.started - 5, boot=boot_id())
            parts = [
                Part(name=name, process=each, log=tmp_path) for name, each in (("moto", before), ("oidc", earlier))
            ]
            state.store(
                SandboxState(folder=tmp_path, short=tmp_path, boot="the boot before", parts=parts, complete=True)
            )
            assert status(tmp_path) == (4, {"moto": "dead", "oidc": "dead"})
            assert lifecycle.down(tmp_path, lambda _: None) == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.slurm
def test_a_long_folder_name_is_no_obstacle(folders: Callable[[str], Path]) -> None:
    folder = folders("a-folder-whose-name-is-much-too-long-for-the-path-of-a-unix-socket-in-it-or-further-below")
    up(folder, "--no-service")
    known = state.load(folder)
    assert known is not None
    assert known.short != folder
    assert known.short.resolve() == folder
    assert status(folder)[0] == 0
    assert bbpwf("down", "--dir", str(folder)).returncode == 0
    assert not known.short.is_symlink()


def test_without_slurm_it_says_so(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "missing_for_slurm", lambda: ["slurmctld", "munged"])
    said: list[str] = []
    made = lifecycle.up(folders("one"), said.append, service=False)
    assert made.backend == "local"
    assert any("local processes" in line and "slurmctld, munged" in line for line in said)
    with pytest.raises(state.SandboxError, match="slurmctld, munged"):
        lifecycle.up(folders("two"), said.append, service=False, backend="slurm")


def test_env_gives_what_commands_need_and_keeps_the_services_secret(folders: Callable[[str], Path]) -> None:
    folder = folders("one")
    none = bbpwf("env", "--dir", str(folder))
    assert none.returncode == 5
    assert "bbpwf sandbox up" in none.stderr
    up(folder, "--no-service", "--backend", "local")
    secret = (folder / "secrets" / "client-secret").read_text().strip()
    clients, service = (bbpwf("env", "--dir", str(folder), *options).stdout for options in ((), ("--service",)))
    assert "export BBPWF_OIDC__ISSUER=" in clients
    assert secret not in clients
    assert secret in service
    for name in ("env", "env.service", "sandbox.json", "secrets/client-secret"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(secret.encode() in line for line in command_lines)


def test_a_folder_that_holds_something_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    refused = bbpwf("down", "--purge", "--dir", str(tmp_path))
    assert refused.returncode != 0
    assert "holds no sandbox" in refused.stderr
    assert (tmp_path / "thesis.tex").exists()
