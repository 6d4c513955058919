"""The far end of the framed shell, on pipes, as a user who may not see everything."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbpwf.clock import SystemClock
from bbpwf.transport.framed import EXISTS, FramedShell, shell_command

NOBODY = 65534


class Pipes:
    """A shell's standard input and output."""

    def __init__(self, command: str) -> None:
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self.process = subprocess.Popen(
            ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", **user
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def send(self, data: bytes, timeout: float) -> None:
        del timeout
        self.input.write(data)

    def receive(self, timeout: float) -> bytes:
        if not select.select([self.output], [], [], timeout)[0]:
            raise TimeoutError
        return os.read(self.output.fileno(), 65536)

    def close(self) -> None:
        self.input.close()
        self.output.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def shell() -> Iterator[FramedShell]:
    nonce = FramedShell.new_nonce()
    made = FramedShell(Pipes(shell_command(nonce)), nonce, where="here", clock=SystemClock())
    made.start(20)
    yield made
    made.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="bbpwf-framed-"))
    (made / "open").mkdir()
    (made / "open" / "file").touch()
    (made / "shut").mkdir()
    made.chmod(0o755)
    (made / "shut").chmod(0)
    yield made
    (made / "shut").chmod(0o700)
    shutil.rmtree(made)


def test_what_may_not_be_seen_is_neither_there_nor_absent(shell: FramedShell, folder: Path) -> None:
    asked = ["open/file", "open/none", "open/none/below", "open/file/below", "shut/x", "shut/x/y", "shut"]
    done = shell.run([EXISTS, *(f"{folder}/{each}" for each in asked)], stdin=b"", timeout=10, cap=100)
    assert (done.exit_code, done.out) == (0, "+---??+")
    assert shell.run(["echo", "next"], stdin=b"", timeout=10, cap=100).out == "next\n"


@pytest.mark.parametrize("size", [1, 1000, 1024, 1025, 70_000])
@pytest.mark.parametrize("byte", [b"x", b"\n", b"\xff", b"\0"])
def test_input_of_any_size_arrives_as_it_was(shell: FramedShell, size: int, byte: bytes) -> None:
    data = b"<" + byte * size + b">"
    for _ in range(2):
        done = shell.run(["cat"], stdin=data, timeout=10, cap=100_000)
        assert done.stdout == data


def test_a_variable_that_is_set_for_a_program_is_set_for_it_alone(shell: FramedShell) -> None:
    script = 'printf "%s" "${LC_ALL-unset}"'
    before = shell.run(["bash", "-c", script], stdin=b"", timeout=10, cap=100).out
    assert shell.run(["env", "LC_ALL=C", "bash", "-c", script], stdin=b"", timeout=10, cap=100).out == "C"
    assert shell.run(["bash", "-c", script], stdin=b"", timeout=10, cap=100).out == before
    assert shell.run(["env", "LC_ALL=C", "A=1", "printenv", "A"], stdin=b"", timeout=10, cap=100).out == "1\n"
