"""Which processes are a sandbox's, and that nobody else's are ever touched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import pids
from sandbox.pids import MARKER, ProcessId

Spawn = Callable[..., subprocess.Popen[bytes]]
STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts processes with exactly the environment that is given."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, env: dict[str, str] | None = None, **how: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, env=env or {}, start_new_session=True, **how)  # type: ignore[call-overload]  # what callers add is Popen's
        started.append(process)
        return process  # type: ignore[no-any-return]  # follows from the above

    yield start
    for process in started:
        with process:
            process.kill()


def identified(process: subprocess.Popen[bytes]) -> ProcessId:
    found = pids.identify(process.pid)
    assert found is not None
    return found


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_lives_until_it_has_ended_even_if_nobody_waited_for_it(spawn: Spawn) -> None:
    process = spawn("/bin/sleep", "60")
    name = identified(process)
    assert name.alive()
    process.kill()
    until(lambda: not name.alive())  # it is a zombie now: nobody has waited for it
    assert pids.identify(process.pid) is None
    assert Path(f"/proc/{process.pid}").exists()


def test_a_number_that_is_used_again_is_another_process(spawn: Spawn) -> None:
    process = spawn("/bin/sleep", "60")
    real = identified(process)
    for other in (
        real.model_copy(update={"started": real.started - 1}),
        real.model_copy(update={"boot": "before the last reboot"}),
    ):
        assert not other.alive()
        other.signal(signal.SIGKILL)
        assert pids.end([other], grace=0.1) == []
    assert process.poll() is None
    assert real.alive()


def test_what_carries_the_mark_belongs(spawn: Spawn, tmp_path: Path) -> None:
    marked = spawn("/bin/sleep", "60", env={MARKER: str(tmp_path)})
    at_home = spawn("/bin/sleep", "60", env={"HOME": str(tmp_path / "cluster" / "home" / "sim")})
    job = spawn("/bin/sleep", "60", env={"SLURM_CONF": str(tmp_path / "slurm.conf"), "SLURM_JOB_ID": "7"})
    assert set(pids.belonging(tmp_path)) == {identified(each) for each in (marked, at_home, job)}


def test_a_shell_that_only_uses_the_sandbox_does_not_belong(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    spawn("/bin/sleep", "60", env={"SLURM_CONF": str(tmp_path / "slurm.conf")})
    spawn("/bin/sleep", "60", env={"BBPWF_SANDBOX_DIR": str(tmp_path), "BBPWF_STATE_DIR": str(tmp_path / "client")})
    spawn("/bin/sleep", "60", cwd=tmp_path / "cluster")
    spawn("/bin/sleep", "60", env={MARKER: f"{tmp_path}-other", "HOME": f"{tmp_path}-other/x"})
    assert pids.belonging(tmp_path) == []


def test_we_and_those_we_run_under_never_belong(spawn: Spawn, tmp_path: Path) -> None:
    code = f"from pathlib import Path; from sandbox import pids; print([p.pid for p in pids.belonging(Path({str(tmp_path)!r}))])"
    script = f'"{sys.executable}" -c "$1"; exit'
    process = spawn(
        "/bin/sh",
        "-c",
        script,
        "sh",
        code,
        env={MARKER: str(tmp_path)},
        cwd=Path(pids.__file__).parent.parent,
        stdout=subprocess.PIPE,
    )
    assert process.communicate(timeout=30)[0] == b"[]\n"


def test_descendants_are_found_through_generations(spawn: Spawn) -> None:
    process = spawn("/bin/sh", "-c", "(/bin/sleep 60 & /bin/sleep 60; exit); exit")
    until(lambda: len(pids.descendants([identified(process)])) == 4)  # two shells and two sleeps
    found = pids.descendants([identified(process)])
    assert identified(process) in found
    assert os.getpid() not in {each.pid for each in found}
    assert pids.end(found, grace=5) == []
    assert not any(each.alive() for each in found)


def test_what_ignores_a_polite_end_is_killed(spawn: Spawn) -> None:
    process = spawn(sys.executable, "-c", STUBBORN, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    name = identified(process)
    assert pids.end([name], grace=0.2) == []
    assert not name.alive()


def test_a_stranger_on_the_port_is_not_taken_for_ours(spawn: Spawn) -> None:
    other = spawn("/bin/sleep", "60")
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        me = pids.identify(os.getpid())
        assert me is not None
        assert not pids.listener(port, [me])  # bound, but not listening
        ours.listen()
        assert pids.listener(port, [me])
        assert not pids.listener(port, [identified(other)])
    assert not pids.listener(port, [me])
