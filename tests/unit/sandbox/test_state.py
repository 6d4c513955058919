"""What a sandbox knows about itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bbpwf.settings import Settings
from sandbox import environment, state
from sandbox.environment import client_env, service_env
from sandbox.layout import Layout
from sandbox.pids import ProcessId, boot_id
from sandbox.platform import choose_ports
from sandbox.process import free
from sandbox.state import Part, SandboxError, SandboxState


def a_state(folder: Path, **changes: object) -> SandboxState:
    ports = {"moto": 1, "oidc": 2, "provisioner": 3, "nexus": 4, "sshd": 5, "service": 6, "scheduler": 7}
    made = SandboxState(folder=folder, short=folder, boot=boot_id(), ports=ports)
    made.urls = environment.urls(ports, service=True)
    return made.model_copy(update=changes)


def test_it_is_read_as_it_was_written_and_by_its_owner_alone(tmp_path: Path) -> None:
    part = Part(
        name="moto", process=ProcessId(pid=1, started=2, boot="b"), log=tmp_path / "log", port=5, url="http://x"
    )
    written = a_state(tmp_path, parts=[part], complete=True)
    state.store(written)
    assert state.load(tmp_path) == written
    assert (tmp_path / state.FILE).stat().st_mode & 0o077 == 0
    assert written.part("moto") == part
    assert written.part("nexus") is None


def test_a_folder_without_a_sandbox(tmp_path: Path) -> None:
    assert state.load(tmp_path) is None
    assert state.load(tmp_path / "absent") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "folder": 3}'])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE).write_text(text)
    with pytest.raises(SandboxError, match="damaged"):
        state.load(tmp_path)


def test_a_file_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / state.FILE).write_text('{"version": 99}')
    with pytest.raises(SandboxError, match="another version"):
        state.load(tmp_path)


def test_after_a_reboot_it_is_stale(tmp_path: Path) -> None:
    assert not a_state(tmp_path).stale()
    assert a_state(tmp_path, boot="another").stale()


def test_a_short_path_is_taken_as_it_is() -> None:
    assert state.short_name(Path("/home/someone/bbpwf/.sandbox")) == Path("/home/someone/bbpwf/.sandbox")


def test_a_long_path_gets_a_short_link_that_is_removed_again(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 12)
    folder.mkdir()
    short = state.short_name(folder)
    try:
        assert len(os.fsencode(short / "state" / "runs" / ("u" * 36) / "agent.sock")) <= 107
        assert short.resolve() == folder.resolve()
        assert state.short_name(folder) == short
    finally:
        state.drop_short_name(a_state(folder, short=short))
    assert not short.is_symlink()
    assert folder.is_dir()


def test_a_link_that_leads_elsewhere_is_neither_used_nor_removed(tmp_path: Path) -> None:
    places = Path("/tmp") / f"t{os.getpid()}"
    places.mkdir()
    folder = tmp_path / ("long" * 12)
    folder.mkdir()
    try:
        first = state.short_name(folder, (places,))
        first.unlink()
        first.symlink_to(tmp_path)
        second = state.short_name(folder, (places,))
        assert second != first
        state.drop_short_name(a_state(folder, short=first))
        assert first.is_symlink()
    finally:
        for link in places.iterdir():
            link.unlink()
        places.rmdir()


def test_a_path_with_no_short_name_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="too long") as refused:
        state.short_name(tmp_path / ("long" * 12), (tmp_path,))
    assert "--dir" in refused.value.hint


def test_one_command_at_a_time(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with state.exclusively(tmp_path):
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(10)
        with pytest.raises(SandboxError, match="another command"), state.exclusively(tmp_path, within=0.1):
            pass
    finally:
        leave.set()
        holder.join(10)
    with state.exclusively(tmp_path, within=0.1):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SandboxError, match="cannot be used"), state.exclusively(tmp_path / "file" / "folder"):
        pass


def test_ports_stay_if_they_are_free_and_change_if_not() -> None:
    first = choose_ports({})
    assert len(set(first.values())) == len(first) == 7
    assert all(free(port) for port in first.values())
    assert choose_ports(first) == first
    taken = choose_ports({**first, "moto": 1})  # nobody but root may listen there; root may, and then it stays
    assert taken["oidc"] == first["oidc"]


def test_settings_understand_every_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service_env(a_state(tmp_path), "s3cret-of-the-service").items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.cluster.kind == "provisioned"
    assert settings.cluster.port == 5
    assert settings.state == Layout(tmp_path).service_state
    assert settings.service.port == 6
    assert not settings.service.secure_cookies
    assert settings.oidc.client_secret is not None
    assert settings.oidc.client_secret.get_secret_value() == "s3cret-of-the-service"
    assert settings.s3.lustre_path == settings.cluster.data_root


def test_clients_get_no_secret_and_a_state_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = client_env(a_state(tmp_path))
    assert not [name for name in env if "SECRET" in name and name != "AWS_SECRET_ACCESS_KEY"]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.state != Layout(tmp_path).service_state
    assert settings.url == "http://127.0.0.1:6"
    assert settings.scheduler_url == "http://127.0.0.1:7"


def test_without_slurm_there_is_no_lustre_to_speak_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in client_env(a_state(tmp_path, backend="local", why_local="no slurmctld")).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.cluster.kind == "local"
    assert settings.provisioner.url is None
    assert settings.s3.bucket == ""
