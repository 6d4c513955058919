"""Settings: where they come from, which wins, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bbpwf.errors import InvalidConfig
from bbpwf.settings import load

EXAMPLE = Path(__file__).parent.parent.parent / "config" / "instance.toml"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("BBPWF_"):
            monkeypatch.delenv(name)


def test_the_example_file_is_accepted_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BBPWF_CONFIG_FILE", str(EXAMPLE))
    monkeypatch.setenv("BBPWF_PROVISIONER__TIER", "debug")
    settings = load()
    assert (settings.cluster.kind, settings.provisioner.tier) == ("provisioned", "debug")
    assert settings.provisioner.region == "us-east-1", "what neither names keeps its default"
    assert settings.database == "sqlite:////var/lib/bbpwf/bbpwf.db"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BBPWF_CLUSTER__KIND", "cloud", "cluster.kind"),
        ("BBPWF_CLUSTER__PORT", "70000", "cluster.port"),
        ("BBPWF_SERVICE__NO_SUCH", "1", "service.no_such"),
        ("BBPWF_CONFIG_FILE", "/no/such/file.toml", "does not exist"),
    ],
)
def test_a_mistake_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig, match=words):
        load()


def test_a_secret_is_not_repeated_in_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[oidc]\nclient_secret = "hunter2-hunter2"\nleeway_s = "hunter2-hunter2"\n')
    monkeypatch.setenv("BBPWF_CONFIG_FILE", str(file))
    with pytest.raises(InvalidConfig) as caught:
        load()
    assert "leeway_s" in str(caught.value)
    assert "hunter2" not in str(caught.value)
