"""What every transport promises, asked of all of them; then what only SSH can get wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.errors import (
    CommandFailed,
    CommandTimeout,
    ConnectFailed,
    ConnectionLost,
    HostKeyChanged,
    InvalidInput,
    LimitExceeded,
    LoginRefused,
    NotFound,
    SecretUnavailable,
    TransportError,
)
from bbpwf.transport.hostkeys import HostKeyPins
from bbpwf.transport.local import LocalTransport
from bbpwf.transport.protocol import Transport
from bbpwf.transport.ssh import SshTransport
from bbpwf.transport.ssh_connection import Login
from sandbox import sshd
from sandbox.process import Running, free_ports, start, stop

ALL_BYTES = bytes(range(256))


@dataclass
class HeadNode:
    """A running sshd, and how to make transports to it."""

    folder: Path
    sshd: sshd.Sshd
    running: Running

    @property
    def login(self) -> Login:
        return Login("127.0.0.1", self.sshd.port, self.sshd.user, connect_timeout=20)

    @property
    def key(self) -> SecretStr:
        return SecretStr(self.sshd.sim_key.read_text())

    @property
    def home(self) -> Path:
        return self.folder / "home" / "sim"

    def connections_so_far(self) -> int:
        return self.sshd.log.read_text().count("Accepted publickey")

    def cut(self) -> None:
        """Kill what serves the open connections, as a broken network or a rebooting head node would."""
        sshd.cut(self.running.pid)

    def transport(self, **changes: object) -> SshTransport:
        login = replace(self.login, **changes)  # type: ignore[arg-type]  # fields are checked at run time
        pins = HostKeyPins(self.folder / "known_hosts")
        return SshTransport(login, self.key, pins, clock=SystemClock(), command_timeout=30)


@cache
def _key_pairs() -> dict[str, str]:
    """Login keys, made once: each takes a good part of a second."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sshd.prepare(home / "ssh", port=1, sim_home=home, admin_home=home)
        return {each.name: each.read_text() for role in ("sim", "admin") for each in (home / "ssh").glob(f"{role}.*")}


def prepare(folder: Path, port: int) -> HeadNode:
    (folder / "ssh").mkdir(exist_ok=True)
    for name, text in _key_pairs().items():
        (folder / "ssh" / name).write_text(text)
        (folder / "ssh" / name).chmod(0o600)
    home = folder / "home" / "sim"
    for name in ("bin", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    env = {"ONLY_IN_LOGIN_SHELLS": "yes", "TMPDIR": str(folder / "tmp")}
    sshd.write_profile(home, first_on_path=folder / "bin", env=env)
    prepared = sshd.prepare(folder / "ssh", port=port, sim_home=home, admin_home=folder / "home" / "admin")
    return HeadNode(folder, prepared, start(prepared.process))


def retire(node: HeadNode) -> None:
    node.cut()
    stop(node.running)


@pytest.fixture
def head_node() -> Iterator[HeadNode]:
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-t-", dir="/tmp"))
    node = prepare(folder, free_ports(1)[0])
    try:
        yield node
    finally:
        retire(node)
        shutil.rmtree(folder)


@pytest.fixture
def ssh(head_node: HeadNode) -> Iterator[SshTransport]:
    transport = head_node.transport()
    yield transport
    transport.close()


@pytest.fixture(scope="module")
def shared_node() -> Iterator[HeadNode]:
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-t-", dir="/tmp"))
    node = prepare(folder, free_ports(1)[0])
    try:
        yield node
    finally:
        retire(node)
        shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["ssh", "local"])
def transport(request: pytest.FixtureRequest, shared_node: HeadNode) -> Iterator[Transport]:
    made: Transport = shared_node.transport() if request.param == "ssh" else LocalTransport(command_timeout=30)
    yield made
    made.close()


def eventually(what: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody has waited for yet has."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


# ---------------------------------------------------------------------------------------- every transport


def test_answers_exit_code_and_both_streams_apart(transport: Transport) -> None:
    done = transport.run(["bash", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.exit_code, done.out, done.err, done.truncated) == (7, "out\n", "err\n", False)


def test_keeps_trailing_newlines_and_emptiness(transport: Transport) -> None:
    assert transport.run(["printf", "a\n\n\n"]).stdout == b"a\n\n\n"
    assert transport.run(["true"]).stdout == b""


@pytest.mark.parametrize(
    "word",
    [
        "",
        " ",
        "a b",
        "$(id)",
        "`id`",
        "'",
        '"',
        "\\",
        "a\nb",
        "*",
        "~",
        "-n",
        "é☃",
        "\udcff\udc80",
        "!x",
        "\t",
        "#",
        ";",
        "&&",
    ],
)
def test_arguments_arrive_as_they_are(transport: Transport, word: str) -> None:
    done = transport.run(["printf", "[%s][%s]", word, "end"])
    assert done.stdout == b"[" + os.fsencode(word) + b"][end]"


def test_no_argument_can_hold_a_nul(transport: Transport) -> None:
    with pytest.raises(InvalidInput):
        transport.run(["echo", "a\0b"])
    with pytest.raises(InvalidInput):
        transport.run([])


def test_a_long_argument_list_arrives(transport: Transport) -> None:
    words = [f"word {i} " + "x" * 90 for i in range(2000)]
    assert transport.run(["printf", "%s\\n", *words]).out == "".join(f"{word}\n" for word in words)


def test_builtins_and_keywords_are_not_the_shells(transport: Transport) -> None:
    assert transport.run(["if"]).exit_code == 127
    assert transport.run(["exit", "3"]).exit_code == 127
    assert transport.run(["true"]).exit_code == 0


def test_missing_program_and_signal_have_a_shells_codes(transport: Transport) -> None:
    missing = transport.run(["bbpwf-no-such-program"])
    assert missing.exit_code == 127
    assert "bbpwf-no-such-program" in missing.err
    assert transport.run(["bash", "-c", "kill -9 $$"]).exit_code == 137
    assert transport.run(["/tmp"]).exit_code == 126


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600))
def test_any_bytes_go_in_and_come_out(transport: Transport, data: bytes) -> None:
    assert transport.run(["cat"], stdin=data).stdout == data


@pytest.mark.parametrize("size", [1, 4096, 16383, 16384, 16385, 300_000])
def test_sizes_around_buffers(transport: Transport, size: int) -> None:
    plain = b"x" * size
    assert transport.run(["cat"], stdin=plain).stdout == plain
    binary = (ALL_BYTES * (size // 256 + 1))[:size]
    assert transport.run(["cat"], stdin=binary).stdout == binary
    assert transport.run(["bash", "-c", "cat >&2"], stdin=binary).stderr == binary


def test_output_is_capped_and_says_so(transport: Transport) -> None:
    done = transport.run(["bash", "-c", "head -c 10000000 /dev/zero | tr '\\0' y; echo last >&2; exit 3"], cap=4096)
    assert done.stdout == b"y" * 4096
    assert done.truncated
    assert (done.exit_code, done.err) == (3, "last\n")
    exact = transport.run(["printf", "1234"], cap=4)
    assert (exact.stdout, exact.truncated) == (b"1234", False)


def test_ten_megabytes_come_whole_if_asked_for(transport: Transport) -> None:
    done = transport.run(["head", "-c", "10000000", "/dev/zero"], cap=10_000_000)
    assert done.stdout == bytes(10_000_000)
    assert not done.truncated


def test_a_flood_is_capped_while_it_lasts(transport: Transport) -> None:
    done = transport.run(["timeout", "1", "yes"], cap=1000)
    assert done.stdout == (b"y\n" * 500)
    assert (done.exit_code, done.truncated) == (124, True)


def test_time_limit_ends_the_command_and_its_children(transport: Transport, tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo $! >{0}/child; echo $$ >{0}/self; wait; sleep 600"
    began = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        transport.run(["bash", "-c", script.format(tmp_path)], timeout=0.5)
    assert time.monotonic() - began < 8
    assert "0.5 s" in str(caught.value)
    for name in ("child", "self"):
        pid = int((tmp_path / name).read_text())
        eventually(partial(gone, pid))
    assert transport.run(["echo", "fine"]).out == "fine\n"


def test_a_command_told_to_end_may_clean_up(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(CommandTimeout):
        transport.run(
            ["bash", "-c", f"trap 'echo bye >{tmp_path}/bye; exit 0' TERM; while :; do sleep 0.1; done"], timeout=0.5
        )
    eventually((tmp_path / "bye").exists)


def test_what_a_command_leaves_running_holds_nobody_up(transport: Transport, tmp_path: Path) -> None:
    began = time.monotonic()
    done = transport.run(
        [
            "bash",
            "-c",
            f"(while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo late; touch {tmp_path}/said) & echo now",
        ]
    )
    assert done.out == "now\n"
    assert time.monotonic() - began < 5
    (tmp_path / "go").touch()
    eventually((tmp_path / "said").exists)
    assert transport.run(["echo", "next"]).out == "next\n"


def test_stat_answers_in_order_and_none_for_nothing(transport: Transport, tmp_path: Path) -> None:
    names = ["plain", "with space", "new\nline", "quote'\"", "-dash", "\udcff\udcfe", "é", "%n\\0"]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * i)
    os.utime(tmp_path / "plain", (1_700_000_000, 1_700_000_000.25))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path)
    paths = [str(tmp_path / name) for name in names]
    seen = transport.stat(
        [
            *paths,
            f"{tmp_path}/absent",
            str(tmp_path),
            f"{tmp_path}/dangling",
            f"{tmp_path}/link",
            f"{tmp_path}/plain/below",
            paths[0],
        ]
    )
    assert [s.size if s else None for s in seen[: len(names)]] == list(range(len(names)))
    assert seen[0] is not None
    assert seen[0].mtime == pytest.approx(1_700_000_000.25)
    assert not seen[0].is_dir
    absent, folder, dangling, link, below, again = seen[len(names) :]
    assert absent is dangling is below is None
    assert folder is not None
    assert folder.is_dir
    assert link is not None
    assert link.is_dir
    assert again == seen[0]
    for path, facts in zip(paths, seen, strict=False):  # alone, and in a company without line breaks
        assert transport.stat([path, f"{tmp_path}/absent"]) == [facts, None]
        assert transport.exists([path]) == [True]
    everything = [*paths, f"{tmp_path}/absent", str(tmp_path), f"{tmp_path}/dangling", f"{tmp_path}/link"]
    everything += [
        f"{tmp_path}/plain/below",
        f"{tmp_path}/no/such/folder",
        "/",
        "/nothing-is-called-so",
        f"{tmp_path}/",
    ]
    assert transport.exists(everything) == [each is not None for each in transport.stat(everything)]
    assert transport.stat([]) == []
    assert transport.exists([]) == []


def test_stat_of_three_thousand_paths(transport: Transport, tmp_path: Path) -> None:
    for i in range(0, 3000, 2):
        (tmp_path / f"f{i}").touch()
    seen = transport.stat([f"{tmp_path}/f{i}" for i in range(3000)])
    assert [s is not None for s in seen] == [i % 2 == 0 for i in range(3000)]
    assert transport.exists([f"{tmp_path}/f{i}" for i in range(3000)]) == [i % 2 == 0 for i in range(3000)]


def test_read_a_part(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "odd 'name'"
    path.write_bytes(ALL_BYTES * 1000)
    assert transport.read(str(path)) == ALL_BYTES * 1000
    assert transport.read(str(path), offset=255, limit=3) == b"\xff\x00\x01"
    assert transport.read(str(path), offset=255_999, limit=10) == b"\xff"
    assert transport.read(str(path), offset=256_000) == b""
    assert transport.read(str(path), offset=9_999_999) == b""


def test_read_what_is_not_there_or_no_file(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        transport.read(f"{tmp_path}/absent")
    with pytest.raises(NotFound):
        transport.read(f"{tmp_path}/no/such/folder")
    with pytest.raises(CommandFailed):
        transport.read(str(tmp_path))


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_write_then_read(transport: Transport, tmp_path: Path, size: int) -> None:
    data = (ALL_BYTES * (size // 256 + 1))[:size]
    path = tmp_path / "new" / "folders" / "the file's name"
    transport.write(str(path), data, mode=0o640)
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o640
    transport.write(str(path), b"other")
    assert path.read_bytes() == b"other"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_write_where_it_cannot_be(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed):
        transport.write(f"{tmp_path}/file/below", b"x")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(CommandFailed):
        transport.write(f"{tmp_path}/folder", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_readers_never_see_half_a_write(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "file"
    transport.write(str(path), b"0" * 200_000)
    finished = threading.Event()
    odd: list[bytes] = []

    def look() -> None:
        while not finished.is_set():
            data = path.read_bytes()
            if len(data) != 200_000 or len(set(data)) != 1:
                odd.append(data[:10])
            time.sleep(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    for digit in b"123456":
        transport.write(str(path), bytes([digit]) * 200_000)
    finished.set()
    watcher.join()
    assert odd == []


def collect(chunks: Iterator[bytes], into: bytearray) -> threading.Thread:
    def work() -> None:
        for chunk in chunks:
            into.extend(chunk)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_follow_from_before_the_file_exists(transport: Transport, tmp_path: Path) -> None:
    path, got = tmp_path / "events here", bytearray()
    with transport.follow(str(path)) as chunks:
        thread = collect(chunks, got)
        transport.run(["true"])  # a follower takes nothing from the others
        path.write_bytes(b"one\n")
        eventually(lambda: got == b"one\n")
        with path.open("ab") as file:
            file.write(ALL_BYTES)
            file.flush()
            eventually(lambda: got == b"one\n" + ALL_BYTES)
            file.write(b"end")
        eventually(lambda: got.endswith(b"end"))
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_follow_from_an_offset_with_much_to_catch_up(transport: Transport, tmp_path: Path) -> None:
    path, got = tmp_path / "events", bytearray()
    path.write_bytes(b"skip" + b"z" * 3_000_000)
    with transport.follow(str(path), offset=4) as chunks:
        thread = collect(chunks, got)
        eventually(lambda: len(got) == 3_000_000, within=20)
        with path.open("ab") as file:
            file.write(b"!")
        eventually(lambda: got.endswith(b"z!"))
    thread.join(10)
    assert len(got) == 3_000_001


def test_twenty_threads_at_once(transport: Transport, tmp_path: Path) -> None:
    def work(i: int) -> None:
        for j in range(5):
            data = os.urandom(i * 300)
            transport.write(f"{tmp_path}/{i}", data)
            assert transport.read(f"{tmp_path}/{i}") == data
            assert transport.run(["bash", "-c", f"echo {i} {j}; exit {i}"]).out == f"{i} {j}\n"

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))


@pytest.mark.parametrize("kind", ["ssh", "local"])
def test_a_closed_transport_says_so(kind: str, shared_node: HeadNode) -> None:
    transport: Transport = shared_node.transport() if kind == "ssh" else LocalTransport()
    assert transport.run(["true"]).exit_code == 0
    transport.close()
    with pytest.raises(TransportError, match="closed") as caught:
        transport.run(["true"])
    assert not caught.value.retryable
    transport.close()


# ---------------------------------------------------------------------------------------- SSH alone


def test_many_calls_are_one_connection(head_node: HeadNode, ssh: SshTransport, tmp_path: Path) -> None:
    with ssh.follow(f"{tmp_path}/a"), ssh.follow(f"{tmp_path}/b"), ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: ssh.run(["true"]), range(100)))
    assert head_node.connections_so_far() == 1
    assert "no more sessions" not in head_node.sshd.log.read_text()


def test_followers_are_counted(ssh: SshTransport, tmp_path: Path) -> None:
    with (
        ssh.follow(f"{tmp_path}/a"),
        ssh.follow(f"{tmp_path}/b"),
        ssh.follow(f"{tmp_path}/c"),
        ssh.follow(f"{tmp_path}/d"),
        pytest.raises(LimitExceeded),
        ssh.follow(f"{tmp_path}/e"),
    ):
        pass
    with ssh.follow(f"{tmp_path}/e"):
        assert ssh.run(["true"]).exit_code == 0


def test_commands_get_the_login_shells_environment(head_node: HeadNode, ssh: SshTransport) -> None:
    program = head_node.folder / "bin" / "only-on-login-path"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert ssh.run(["only-on-login-path"]).out == "found\n"
    assert ssh.run(["printenv", "ONLY_IN_LOGIN_SHELLS"]).out == "yes\n"
    assert ssh.run(["printenv", "HOME"]).out == f"{head_node.home}\n"
    assert ssh.run(["printenv", "LC_ALL"]).exit_code == 1


NOISY_PROFILE = """
echo 'Welcome! bbpwf READY'; echo 'stderr noise' >&2; printf 'no newline at the end'
read -r -t 5 swallowed; cat
readonly TMOUT=1
set -eu -o pipefail; set -o noclobber
IFS=,
export LC_ALL=C.UTF-8 LANG=C.UTF-8
stat() { echo mine; }; head() { echo mine; }
trap 'echo trapped' EXIT DEBUG ERR
"""


def test_noisy_and_nosy_profiles_disturb_nothing(head_node: HeadNode, ssh: SshTransport, tmp_path: Path) -> None:
    with (head_node.home / ".bash_profile").open("a") as profile:
        profile.write(NOISY_PROFILE)
    (head_node.home / ".bashrc").write_text("echo 'from bashrc'; echo again >&2\n")
    assert ssh.run(["echo", "clean"]).out == "clean\n"
    assert ssh.run(["cat"], stdin=ALL_BYTES * 100).stdout == ALL_BYTES * 100
    assert ssh.run(["printenv", "LC_ALL"]).out == "C.UTF-8\n"
    assert ssh.run(["bash", "-c", "false; exit 4"]).exit_code == 4
    deadline = time.monotonic() + 2.5  # beyond TMOUT, which would end a shell that waits for its next command
    while time.monotonic() < deadline:
        time.sleep(0.1)
    assert ssh.run(["echo", "still there"]).out == "still there\n"
    assert head_node.sshd.log.read_text().count("Starting session: command") == 1


def test_a_profile_that_ends_the_shell_is_named(head_node: HeadNode, ssh: SshTransport) -> None:
    (head_node.home / ".bash_profile").write_text("exit 3\n")
    with pytest.raises(ConnectFailed, match="profile"):
        ssh.run(["true"])


def test_shells_leave_no_files_behind(head_node: HeadNode) -> None:
    transport = head_node.transport()
    for _ in range(3):
        transport.run(["cat"], stdin=b"x" * 100_000)
    assert list((head_node.folder / "tmp").iterdir()) != []
    transport.close()
    eventually(lambda: list((head_node.folder / "tmp").iterdir()) == [])


def test_cut_connection_is_reported_not_repeated_and_mended_by_the_next_call(
    head_node: HeadNode, ssh: SshTransport, tmp_path: Path
) -> None:
    ssh.run(["true"])
    script = f"echo run >>{tmp_path}/count; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ssh.run, ["bash", "-c", script])
        eventually((tmp_path / "count").exists)
        head_node.cut()
        with pytest.raises(ConnectionLost) as caught:
            under_way.result(20)
    assert caught.value.retryable
    assert ssh.run(["echo", "back"]).out == "back\n"
    assert (tmp_path / "count").read_text() == "run\n"
    assert head_node.connections_so_far() == 2
    (tmp_path / "go").touch()


def test_an_idle_connection_that_was_cut_costs_no_call(head_node: HeadNode, ssh: SshTransport) -> None:
    ssh.run(["true"])
    head_node.cut()
    eventually(lambda: not ssh.connected)
    assert ssh.run(["echo", "back"]).out == "back\n"


def test_follow_ends_by_itself_when_the_connection_is_cut(
    head_node: HeadNode, ssh: SshTransport, tmp_path: Path
) -> None:
    path, got = tmp_path / "events", bytearray()
    path.write_bytes(b"12345")
    with ssh.follow(str(path)) as chunks:
        thread = collect(chunks, got)
        eventually(lambda: got == b"12345")
        head_node.cut()
        thread.join(20)
        assert not thread.is_alive()
    with path.open("ab") as file:
        file.write(b"678")
    with ssh.follow(str(path), offset=len(got)) as chunks:
        assert next(chunks) == b"678"


def test_followers_end_at_the_far_end_too(ssh: SshTransport, tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.touch()

    def tails() -> int:
        return ssh.run(["pgrep", "-fc", f"^tail .* {path}$"]).out.strip() != "0"

    with ssh.follow(str(path)):
        eventually(lambda: bool(tails()))
    eventually(lambda: not tails())


def test_a_shell_that_was_killed_is_replaced(head_node: HeadNode, ssh: SshTransport) -> None:
    with pytest.raises(ConnectionLost):
        ssh.run(["bash", "-c", "kill -9 $(ps -o ppid= -p $PPID)"])
    assert ssh.run(["echo", "fine"]).out == "fine\n"
    assert head_node.connections_so_far() == 1


def test_a_far_end_that_answers_nothing_is_a_time_out_and_then_a_new_connection(head_node: HeadNode) -> None:
    transport = head_node.transport(connect_timeout=3)
    transport.run(["true"])
    stopped = sshd.connections(head_node.running.pid)
    below = [int(p) for pid in stopped for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for pid in [*stopped, *below]:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(CommandTimeout):
            transport.run(["true"], timeout=0.2)
        with pytest.raises(ConnectFailed):
            transport.run(["true"], timeout=0.2)
        assert transport.run(["echo", "back"]).out == "back\n"
    finally:
        for pid in [*stopped, *below]:
            os.kill(pid, signal.SIGKILL)
        transport.close()


def test_changed_host_key_is_refused_with_both_fingerprints(head_node: HeadNode) -> None:
    first = head_node.transport()
    assert first.run(["true"]).exit_code == 0
    first.close()
    pins = head_node.folder / "known_hosts"
    before = pins.read_text()
    old = fingerprint(head_node.sshd.host_key)
    retire(head_node)
    for key in (head_node.folder / "ssh").glob("ssh_host_*"):
        key.unlink()
    changed = prepare(head_node.folder, head_node.sshd.port)
    head_node.running = changed.running
    transport = changed.transport()
    with pytest.raises(HostKeyChanged) as caught:
        transport.run(["true"])
    assert old in str(caught.value)
    assert fingerprint(changed.sshd.host_key) in str(caught.value)
    assert "ssh-keygen -R" in caught.value.hint
    assert not caught.value.retryable
    assert pins.read_text() == before
    assert changed.connections_so_far() == 1, "nobody logs in to a server with the wrong key"
    HostKeyPins(pins).forget("127.0.0.1", head_node.sshd.port)
    again = changed.transport()
    assert again.run(["true"]).exit_code == 0
    again.close()


def test_first_key_is_pinned_as_openssh_would_and_only_if_it_may_be_trusted(head_node: HeadNode) -> None:
    strict = head_node.transport(trust_new=False)
    with pytest.raises(HostKeyChanged, match="pinned"):
        strict.run(["true"])
    pins = head_node.folder / "known_hosts"
    assert not pins.exists()
    trusting = head_node.transport()
    trusting.run(["true"])
    trusting.close()
    assert pins.read_text().split()[:3] == [
        f"[127.0.0.1]:{head_node.sshd.port}",
        *head_node.sshd.host_key.read_text().split()[:2],
    ]
    again = head_node.transport(trust_new=False)
    assert again.run(["true"]).exit_code == 0
    again.close()
    found = subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{head_node.sshd.port}", "-f", str(pins)], capture_output=True, check=False
    )
    assert found.returncode == 0


def fingerprint(public_key: Path) -> str:
    said = subprocess.run(["ssh-keygen", "-lf", str(public_key)], capture_output=True, text=True, check=True)
    return said.stdout.split()[1]


def test_forgetting_one_host_keeps_the_others(tmp_path: Path, shared_node: HeadNode) -> None:
    path = tmp_path / "known_hosts"
    line = shared_node.sshd.host_key.read_text().strip()
    path.write_text(f"one {line}\n[two]:2022 {line}\nthree {line}\n")
    pins = HostKeyPins(path)
    pins.forget("two", 2022)
    assert [pins.types(*host) for host in (("one", 22), ("two", 2022), ("three", 22))] == [
        ["ssh-ed25519"],
        [],
        ["ssh-ed25519"],
    ]


def test_nobody_listens(shared_node: HeadNode) -> None:
    transport = shared_node.transport(port=free_ports(1)[0])
    with pytest.raises(ConnectFailed, match="refused") as caught:
        transport.run(["true"])
    assert caught.value.retryable
    assert transport.where in str(caught.value)


def test_somebody_listens_who_is_no_ssh_server(shared_node: HeadNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        transport = shared_node.transport(port=mute.getsockname()[1], connect_timeout=1)
        began = time.monotonic()
        with pytest.raises(ConnectFailed):
            transport.run(["true"])
        assert time.monotonic() - began < 10


def test_attempts_to_connect_are_spaced_and_succeed_later(head_node: HeadNode) -> None:
    stop(head_node.running)
    transport = head_node.transport()
    outcomes: list[str] = []

    def attempt() -> bool:
        try:
            transport.run(["true"])
        except ConnectFailed as error:
            outcomes.append(error.message)
            return False
        return True

    began = time.monotonic()
    for _ in range(50):
        assert not attempt()
    assert time.monotonic() - began < 2, "calls between attempts fail at once"
    assert len(set(outcomes)) == 1
    head_node.running = start(head_node.sshd.process)
    eventually(attempt)
    transport.close()


def test_a_key_that_the_server_does_not_know_is_refused(shared_node: HeadNode) -> None:
    key = pem(rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL)
    transport = SshTransport(shared_node.login, key, HostKeyPins(shared_node.folder / "k"), clock=SystemClock())
    with pytest.raises(LoginRefused) as caught:
        transport.run(["true"])
    assert not caught.value.retryable
    assert shared_node.sshd.user in str(caught.value)


def pem(key: PrivateKeyTypes, form: PrivateFormat) -> SecretStr:
    return SecretStr(key.private_bytes(Encoding.PEM, form, NoEncryption()).decode())


@pytest.mark.parametrize("form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_every_usual_kind_of_key_logs_in(shared_node: HeadNode, kind: str, form: PrivateFormat) -> None:
    key: PrivateKeyTypes
    if kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    elif kind == "ecdsa":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = ed25519.Ed25519PrivateKey.generate()
        form = PrivateFormat.OpenSSH if form is PrivateFormat.TraditionalOpenSSL else form  # no such form of it
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    with (shared_node.folder / "ssh" / "authorized_keys").open("a") as file:
        file.write(f'environment="HOME={shared_node.home}" {public}\n')
    transport = SshTransport(
        shared_node.login, pem(key, form), HostKeyPins(shared_node.folder / "k"), clock=SystemClock()
    )
    assert transport.run(["echo", "in"]).out == "in\n"
    transport.close()


@pytest.mark.parametrize(
    "text", ["", "nonsense", "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\n-----END RSA PRIVATE KEY-----"]
)
def test_an_unusable_key_is_said_and_not_shown(shared_node: HeadNode, text: str) -> None:
    with pytest.raises(SecretUnavailable) as caught:
        SshTransport(shared_node.login, SecretStr(text), HostKeyPins(shared_node.folder / "k"), clock=SystemClock())
    assert "c2Vj" not in str(caught.value)
    assert "nonsense" not in str(caught.value)


def test_the_key_is_nowhere_in_what_can_be_printed(ssh: SshTransport, head_node: HeadNode) -> None:
    secret = head_node.sshd.sim_key.read_text().splitlines()[1]
    assert secret not in repr(ssh) + repr(vars(ssh)) + str(ssh.where)


def test_a_forked_child_is_told_that_the_connection_is_not_its_own(head_node: HeadNode, ssh: SshTransport) -> None:
    ssh.run(["true"])
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ssh.run(["true"])
            os.write(writable, b"ran")
        except TransportError as error:
            os.write(writable, str(error).encode())
            ssh.close()
        finally:
            os._exit(0)
    os.close(writable)
    os.waitpid(pid, 0)
    with os.fdopen(readable) as pipe:
        assert "forked" in pipe.read()
    assert ssh.run(["echo", "the parent goes on"]).exit_code == 0
    assert head_node.connections_so_far() == 1
