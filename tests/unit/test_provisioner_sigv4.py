"""The double's judgement of signatures, held against botocore's own signing and against tampering."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import requests
from botocore.credentials import ReadOnlyCredentials

from bbpwf.platform.aws import SigV4
from sandbox.sigv4 import SKEW_S, Forbidden, Request, Verifier

KEY_ID, SECRET = "AKIAEXAMPLE000000000", "secret-access-key"
CREDENTIALS = ReadOnlyCredentials(KEY_ID, SECRET, "token/with+signs=")
VERIFIER = Verifier("execute-api", "us-east-1", KEY_ID, SECRET)


def signed(url: str, method: str = "GET", region: str = "us-east-1") -> Request:
    prepared = requests.Request(method, url, auth=SigV4(CREDENTIALS, "execute-api", region)).prepare()
    parts = urlsplit(str(prepared.url))
    headers = {name.lower(): str(value) for name, value in prepared.headers.items()}
    return Request(method, parts.path, parts.query, {"host": parts.netloc, **headers})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/production/hpc-provisioner/version",
        "http://h/pcluster?vlab_id=v&project_id=p&include_lustre=true",
        "http://h/pcluster?b=2&a=1&a=0&empty=&c",
        "http://h/pcluster?name=a%20b%2Fc%2Bd%25~-_.",
        "http://h/a%20b/c",
        "https://h.example/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_botocore_signs_is_accepted(url: str, method: str) -> None:
    VERIFIER.check(signed(url, method), time.time())


def with_header(name: str, value: str) -> Callable[[Request], Request]:
    return lambda request: replace(request, headers={**request.headers, name: value})


@pytest.mark.parametrize(
    "tamper",
    [
        lambda request: replace(request, method="DELETE"),
        lambda request: replace(request, query="project_id=p&vlab_id=other"),
        lambda request: replace(request, query=request.query + "&dev=true"),
        lambda request: replace(request, path="/version"),
        lambda request: replace(request, body=b"x"),
        with_header("host", "elsewhere"),
        with_header("x-amz-security-token", "another"),
        with_header("authorization", "Bearer abc"),
        with_header("authorization", ""),
        with_header("x-amz-date", "yesterday"),
    ],
)
def test_anything_changed_after_signing_is_refused(tamper: Callable[[Request], Request]) -> None:
    with pytest.raises(Forbidden):
        VERIFIER.check(tamper(signed("http://h/pcluster?project_id=p&vlab_id=v")), time.time())


@pytest.mark.parametrize("skew", [-SKEW_S - 5, SKEW_S + 5])
def test_a_clock_that_is_off_by_more_than_five_minutes_is_refused(skew: float) -> None:
    request = signed("http://h/version")
    VERIFIER.check(request, time.time() + skew / 2)
    with pytest.raises(Forbidden, match="expired or not yet current"):
        VERIFIER.check(request, time.time() + skew)


def test_service_region_and_key_must_be_ours() -> None:
    request = signed("http://h/version")
    for verifier in (
        replace(VERIFIER, service="s3"),
        replace(VERIFIER, key_id="AKIAOTHER"),
        replace(VERIFIER, secret="other"),
        replace(VERIFIER, region="eu-west-1"),
    ):
        with pytest.raises(Forbidden):
            verifier.check(request, time.time())


def test_without_a_known_secret_the_form_is_checked() -> None:
    lax = Verifier("execute-api", "us-east-1")
    lax.check(signed("http://h/version"), time.time())
    with pytest.raises(Forbidden):
        lax.check(with_header("authorization", "AWS4-HMAC-SHA256 nonsense")(signed("http://h/version")), time.time())
