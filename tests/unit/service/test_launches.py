"""How a task may be named."""

from __future__ import annotations

import pytest

from bbpwf.errors import InvalidInput
from service.browser import local_path
from service.forms import json_object, text_map
from service.launches import workflow_url


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a:B", "a:B"),
        ("a.b:C", "a.b:C"),
        ("a.b.C", "a.b:C"),
        ("a.py:B", "a:B"),
        ("x/a.py:B", "x.a:B"),
        ("x/a.py", "x.a"),
    ],
)
def test_ways_to_write_it(given: str, found: str) -> None:
    assert workflow_url(given) == found


@pytest.mark.parametrize(
    "given",
    [
        "",
        "a",
        "../a.py:B",
        "/a.py:B",
        "a:B:C",
        "a:B.C",
        "a..b:C",
        "a:",
        ":B",
        "a b:C",
        "a:B\n",
        "1a:B",
        "https://example.org/a.py",
        "a;b:C",
        "a:__import__('os')",
    ],
)
def test_ways_that_are_none(given: str) -> None:
    with pytest.raises(InvalidInput):
        workflow_url(given)


def test_json_parts() -> None:
    assert json_object("p", " ") == {}
    assert text_map("t", '{"a": 1, "b": true, "c": "x"}') == {"a": "1", "b": "true", "c": "x"}
    for bad in (
        "[]",
        "1",
        "{",
        "null",
        '"x"',
        "[" * 100_000,
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": "\\u0000"}',
        '{"a":' * 60 + "1" + "}" * 60,
        '{"a": ' + "9" * 5000 + "}",
    ):
        with pytest.raises(InvalidInput, match="part"):
            json_object("part", bad)
    for bad in ('{"a": null}', '{"a": []}', '{"a": {}}', '{"' + "n" * 300 + '": 1}'):
        with pytest.raises(InvalidInput):
            text_map("part", bad)


@pytest.mark.parametrize(
    ("wanted", "goes"),
    [
        ("/dashboard/x", "/dashboard/x"),
        ("//evil.example", "/dashboard/"),
        ("https://evil.example", "/dashboard/"),
        ("/\\evil.example", "/dashboard/"),
        ("/a\r\nSet-Cookie: x", "/dashboard/"),
        ("", "/dashboard/"),
    ],
)
def test_a_login_returns_to_this_host_alone(wanted: str, goes: str) -> None:
    assert local_path(wanted) == goes
