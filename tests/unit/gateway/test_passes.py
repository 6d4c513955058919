"""Passes: believed only when ours, fresh, and made for the very token that comes with them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from pydantic import SecretStr

from bbpwf.errors import InvalidConfig, NotAuthenticated
from service.gateway.passes import PassChecker, PassMaker, kept_key, new_key
from tests.support.clock import ManualClock

TOKEN = "the.access.token"
LATER = 1e10


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def key() -> SecretStr:
    return new_key()


@pytest.fixture
def maker(key: SecretStr, clock: ManualClock) -> PassMaker:
    return PassMaker(key, lifetime_s=60, clock=clock)


@pytest.fixture
def checker(maker: PassMaker, clock: ManualClock) -> PassChecker:
    return PassChecker(maker.public_keys, clock)


def make(maker: PassMaker, *, token: str = TOKEN, until: float = LATER) -> str:
    return maker.make(token, virtual_lab_id="v", project_id="p", sub="s", username="alice", until=until)


def test_a_pass_says_what_was_decided(maker: PassMaker, checker: PassChecker) -> None:
    said = checker.check(make(maker), TOKEN)
    assert (said.virtual_lab_id, said.project_id, said.sub, said.username) == ("v", "p", "s", "alice")


def test_a_pass_is_of_no_use_with_another_token(maker: PassMaker, checker: PassChecker) -> None:
    sent = make(maker)
    checker.check(sent, TOKEN)
    with pytest.raises(NotAuthenticated, match="another token"):
        checker.check(sent, "another.access.token")


def test_a_pass_ends_soon_and_with_its_token_at_the_latest(
    maker: PassMaker, checker: PassChecker, clock: ManualClock
) -> None:
    long, short = make(maker), make(maker, until=clock.now() + 10)
    checker.check(long, TOKEN)
    checker.check(short, TOKEN)
    clock.advance(20)
    checker.check(long, TOKEN)
    with pytest.raises(NotAuthenticated, match="expired"):
        checker.check(short, TOKEN)
    clock.advance(60)
    with pytest.raises(NotAuthenticated, match="expired"):
        checker.check(long, TOKEN)


def test_a_pass_of_another_gateway_is_refused(checker: PassChecker, clock: ManualClock) -> None:
    foreign = PassMaker(new_key(), lifetime_s=60, clock=clock)
    with pytest.raises(NotAuthenticated, match="not the gateway's"):
        checker.check(make(foreign), TOKEN)


@pytest.mark.parametrize("sent", ["", "x", "a.b.c", "a.b.c.d", "é.é.é", "." * 3000])
def test_what_is_no_pass_is_refused(checker: PassChecker, sent: str) -> None:
    with pytest.raises(NotAuthenticated):
        checker.check(sent, TOKEN)


def forged(key: SecretStr, maker: PassMaker, header: dict[str, object], **claims: object) -> str:
    original = make(maker).split(".")[1]
    whole = json.loads(base64.urlsafe_b64decode(original + "=="))
    kid = json.loads(maker.public_keys)["keys"][0]["kid"]
    signed = JWS(json.dumps({name: value for name, value in {**whole, **claims}.items() if value is not None}))
    protected = {"alg": "ES256", "kid": kid, "typ": "bbpwf-pass+jwt", **header}
    signed.add_signature(JWK.from_json(key.get_secret_value()), alg="ES256", protected=json.dumps(protected))
    return str(signed.serialize(compact=True))


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"typ": "JWT"}, {}),
        ({"kid": "another"}, {}),
        ({}, {"iss": "somebody"}),
        ({}, {"aud": "somewhere"}),
        ({}, {"ath": "x"}),
        ({}, {"exp": None}),
        ({}, {"exp": "soon"}),
        ({}, {"exp": 1}),
        ({}, {"iat": 1e11, "exp": 2e11}),
        ({}, {"project_id": None}),
    ],
)
def test_a_pass_with_something_wrong_is_refused_though_we_signed_it(
    key: SecretStr, maker: PassMaker, checker: PassChecker, header: dict[str, object], claims: dict[str, object]
) -> None:
    assert checker.check(forged(key, maker, {}), TOKEN).sub == "s"
    with pytest.raises(NotAuthenticated):
        checker.check(forged(key, maker, header, **claims), TOKEN)


def test_a_pass_without_a_signature_or_with_a_keyed_hash_is_refused(maker: PassMaker, checker: PassChecker) -> None:
    _, payload, signature = make(maker).split(".")
    public = json.loads(maker.public_keys)["keys"][0]
    for algorithm, end in (("none", ""), ("HS256", signature)):
        header = json.dumps({"alg": algorithm, "typ": "bbpwf-pass+jwt", "kid": public["kid"]})
        start = base64.urlsafe_b64encode(header.encode()).decode().rstrip("=")
        with pytest.raises(NotAuthenticated):
            checker.check(f"{start}.{payload}.{end}", TOKEN)


def test_public_keys_hold_no_private_part(maker: PassMaker, clock: ManualClock) -> None:
    (public,) = json.loads(maker.public_keys)["keys"]
    assert "d" not in public
    with pytest.raises(InvalidConfig):
        PassMaker(SecretStr(json.dumps(public)), lifetime_s=60, clock=clock)


@pytest.mark.parametrize("keys", ["", "{}", '{"keys": []}', "not json", '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'])
def test_keys_that_make_no_sense_are_told(keys: str, clock: ManualClock) -> None:
    with pytest.raises(InvalidConfig):
        PassChecker(keys, clock)


def test_the_key_is_made_once_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "key.json"
    first = kept_key(path)
    assert kept_key(path).get_secret_value() == first.get_secret_value()
    assert path.stat().st_mode & 0o077 == 0
