"""Offline logins at rest, and the tokens that runs get: whose, how fresh, and when there are none."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from pydantic import SecretStr

from bbpwf.cluster.consents import Consents
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.schema import consents as table
from bbpwf.cluster.tokens import EARLY_S, Tokens
from bbpwf.errors import Conflict, IdentityUnavailable, InvalidConfig, LoginNeeded, NotAuthenticated
from bbpwf.redact import Redactor
from tests.support.clock import ManualClock

KEY, NEWER_KEY = SecretStr(Fernet.generate_key().decode()), SecretStr(Fernet.generate_key().decode())
OFFLINE = SecretStr("the-offline-token")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'bbpwf.db'}")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def consents(database: Database, clock: ManualClock) -> Consents:
    return Consents(database, [KEY], clock)


def held(consents: Consents, sub: str = "alice") -> str | None:
    kept = consents.of(sub)
    return kept.token.get_secret_value() if kept is not None and kept.token is not None else None


def test_a_token_comes_back_and_is_not_in_the_database(consents: Consents, database: Database, tmp_path: Path) -> None:
    assert consents.of("alice") is None
    consents.keep("alice", "Alice", "cli", OFFLINE)
    assert held(consents) == "the-offline-token"
    assert "the-offline-token" not in repr(consents.of("alice"))
    for file in tmp_path.iterdir():
        assert b"the-offline-token" not in file.read_bytes()
    consents.keep("alice", "Alice", "cli", SecretStr("a-newer-one"))
    assert held(consents) == "a-newer-one"


def test_a_row_copied_to_another_person_opens_for_nobody(consents: Consents, database: Database) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    consents.keep("mallory", "Mallory", "cli", SecretStr("mallorys"))
    with database.begin() as db:
        sealed = db.execute(sa.select(table.c.sealed).where(table.c.sub == "alice")).scalar_one()
        db.execute(table.update().where(table.c.sub == "mallory").values(sealed=sealed))
    assert held(consents, "mallory") is None
    assert held(consents) == "the-offline-token"


def test_keys_can_be_replaced(database: Database, clock: ManualClock, consents: Consents) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    both = Consents(database, [NEWER_KEY, KEY], clock)
    assert held(both) == "the-offline-token"
    both.keep("bob", "Bob", "cli", OFFLINE)
    newer = Consents(database, [NEWER_KEY], clock)
    assert held(newer, "bob") == "the-offline-token"
    lost = newer.of("alice")
    assert lost is not None
    assert lost.token is None
    assert "a key that this instance does not have" in lost.reason


def test_without_a_key_none_is_taken(database: Database, clock: ManualClock) -> None:
    keyless = Consents(database, [], clock)
    assert not keyless.possible
    with pytest.raises(Conflict, match="keeps no offline logins"):
        keyless.keep("alice", "Alice", "cli", OFFLINE)
    with pytest.raises(InvalidConfig, match="no Fernet key"):
        Consents(database, [SecretStr("too-short")], clock)


def test_what_was_lost_stays_lost_unless_it_was_replaced_meanwhile(consents: Consents) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    consents.lose("alice", SecretStr("an-earlier-one"), "void")
    assert held(consents) == "the-offline-token"
    consents.lose("alice", OFFLINE, "void")
    lost = consents.of("alice")
    assert lost is not None
    assert (lost.token, lost.reason) == (None, "void")
    consents.keep("alice", "Alice", "cli", OFFLINE)
    kept = consents.withdraw("alice")
    assert kept is not None
    assert kept.token == OFFLINE
    assert held(consents) is None


# -- which token a run gets


@dataclass
class Renewed:
    access: SecretStr
    expires_at: float
    refresh: SecretStr | None = None


class Provider:
    """The identity provider, as far as offline tokens go."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.asked: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.rotates = False
        self.lifetime = 300.0

    def renew(self, client: str, token: SecretStr) -> Renewed:
        self.asked.append((client, token.get_secret_value()))
        if self.error is not None:
            raise self.error
        number = len(self.asked)
        return Renewed(
            SecretStr(f"access-{number}"),
            self.clock.now() + self.lifetime,
            SecretStr(f"offline-{number}") if self.rotates else token,
        )


@pytest.fixture
def provider(clock: ManualClock) -> Provider:
    return Provider(clock)


@pytest.fixture
def tokens(clock: ManualClock, consents: Consents, provider: Provider) -> Tokens:
    def service() -> tuple[SecretStr, float]:
        return SecretStr("the-services"), clock.now() + 300

    return Tokens(
        clock,
        Redactor(),
        service_login=service,
        consents=consents,
        renew=provider.renew,
        owner_of=lambda run_id: run_id.partition("-")[0],
    )


def jwt(expires: float) -> SecretStr:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).rstrip(b"=").decode()
    return SecretStr(f"header.{payload}.signature")


def test_a_runs_own_token_goes_first_and_the_offline_login_stands_in_early(
    tokens: Tokens, consents: Consents, clock: ManualClock, provider: Provider
) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    launch = jwt(clock.now() + 300)
    tokens.put("alice-1", launch)
    assert tokens.get("alice-1") == launch
    clock.advance(300 - EARLY_S + 1)
    assert tokens.get("alice-1").get_secret_value() == "access-1"
    assert tokens.get("alice-2").get_secret_value() == "access-1"  # one person, one token
    assert provider.asked == [("cli", "the-offline-token")]
    clock.advance(300 - EARLY_S + 1)
    assert tokens.get("alice-1").get_secret_value() == "access-2"


def test_a_token_that_changes_with_each_use_is_kept(tokens: Tokens, consents: Consents, provider: Provider) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    provider.rotates = True
    tokens.get("alice-1")
    assert held(consents) == "offline-1"


def test_a_void_offline_login_is_not_asked_with_again(tokens: Tokens, consents: Consents, provider: Provider) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    provider.error = NotAuthenticated("Offline user session not found")
    for _ in range(2):
        with pytest.raises(LoginNeeded, match="Offline user session not found"):
            tokens.get("alice-1")
    assert len(provider.asked) == 1
    provider.error = None
    consents.keep("alice", "Alice", "cli", SecretStr("after-a-new-login"))
    assert tokens.get("alice-1").get_secret_value() == "access-2"


def test_an_outage_costs_no_offline_login(tokens: Tokens, consents: Consents, provider: Provider) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    provider.error = IdentityUnavailable("down")
    with pytest.raises(IdentityUnavailable):
        tokens.get("alice-1")
    assert held(consents) == "the-offline-token"
    provider.error = None
    assert tokens.get("alice-1").get_secret_value() == "access-2"


def test_the_services_account_stands_in_only_for_those_who_never_left_a_login(
    tokens: Tokens, consents: Consents
) -> None:
    assert tokens.get("alice-1").get_secret_value() == "the-services"
    consents.keep("alice", "Alice", "cli", OFFLINE)
    consents.withdraw("alice")
    with pytest.raises(LoginNeeded, match="withdrawn"):
        tokens.get("alice-1")
    assert tokens.get("bob-1").get_secret_value() == "the-services"


def test_many_runs_of_a_person_renew_once(tokens: Tokens, consents: Consents, provider: Provider) -> None:
    consents.keep("alice", "Alice", "cli", OFFLINE)
    together = threading.Barrier(8)
    got: list[str] = []

    def get(number: int) -> None:
        together.wait(60)
        got.append(tokens.get(f"alice-{number}").get_secret_value())

    threads = [threading.Thread(target=get, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == ["access-1"] * 8
    assert len(provider.asked) == 1
